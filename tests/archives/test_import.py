"""``pyrun import``: a root file system's tar becomes an image, from a file, a pipe or a URL."""

from __future__ import annotations

import bz2
import functools
import gzip
import http.server
import io
import json
import lzma
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pyrun import Pyrun
from support.registry import HOST_ARCHITECTURE, sha256, tar, zstd

from .conftest import Store

ROOT = tar({"etc": None, "etc/motd": b"hello", "bin": None, "bin/tool": b"x" * 300_000})


def test_a_tar_becomes_an_image_that_runs(fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "one", "busybox", "sh", "-c", "echo mine > /mine; chown 7:8 /mine")
    exported = fresh.ok("export", "one", text=False)
    fresh.ok("rm", "one")
    id = fresh.ok(
        "import", "-c", 'ENTRYPOINT ["stat", "-c", "%u:%g"]', "-c", "CMD /mine", "-c", 'CMD ["/mine"]', "-", "made:1",
        input=exported, text=False,
    ).decode().strip()  # fmt: skip
    assert fresh.ok("run", "--rm", "made:1") == "7:8\n"
    found = fresh.image("made:1")
    assert found["Id"] == id
    assert found["RepoTags"] == ["made:1"]
    assert (found["Os"], found["Architecture"]) == ("linux", HOST_ARCHITECTURE)
    assert "sound" in fresh.ok("system", "check", "--deep")


@pytest.mark.parametrize("compression", ["none", "gzip", "bzip2", "xz", "zstd"])
def test_a_tar_may_be_compressed(shared: Store, compression: str) -> None:
    compress = {
        "none": bytes,
        "gzip": gzip.compress,
        "bzip2": bz2.compress,
        "xz": lzma.compress,
        "zstd": zstd.compress,
    }
    data = compress[compression](ROOT)
    path = shared.directory / "root.tar"
    path.write_bytes(data)
    id = shared.pyrun.ok("import", str(path)).strip()
    found = shared.pyrun.image(id)
    assert found["RootFS"]["Layers"] == [sha256(ROOT)]
    assert found["Size"] == len(ROOT)
    with open(shared.pyrun.root / "content/blobs/sha256" / found["Descriptor"]["digest"][7:], "rb") as file:
        (layer,) = json.load(file)["layers"]
    if compression in ("gzip", "zstd"):
        assert layer["digest"] == sha256(data)  # kept as it is
    assert layer["size"] < len(ROOT) / 10
    assert layer["mediaType"].endswith("+zstd" if compression == "zstd" else "+gzip")
    assert shared.unfinished() == []


def test_settings_message_and_platform_are_the_callers(store: Store) -> None:
    id = store.pyrun.ok(
        "import", "-c", "ENV A=1", "-c", "ENV B=$A\nWORKDIR /srv", "-c", "LABEL x=y", "-m", "from tape", "--platform",
        "linux/arm/v7", "-", "tape", input=ROOT, text=False, env={**store.pyrun.env, "SOURCE_DATE_EPOCH": "86400"},
    ).decode().strip()  # fmt: skip
    found = store.pyrun.image("tape")
    settings = {key: value for key, value in found["Config"].items() if value}
    assert settings == {"Env": ["A=1", "B=1"], "WorkingDir": "/srv", "Labels": {"x": "y"}}
    assert (found["Architecture"], found["Variant"]) == ("arm", "v7")
    assert found["Created"] == "1970-01-02T00:00:00Z"
    assert "from tape" in store.pyrun.ok("history", "tape")
    again = store.pyrun.ok(
        "import", "-c", "ENV A=1", "-c", "ENV B=$A\nWORKDIR /srv", "-c", "LABEL x=y", "-m", "from tape", "--platform",
        "linux/arm/v7", "-", input=ROOT, text=False, env={**store.pyrun.env, "SOURCE_DATE_EPOCH": "86400"},
    )  # fmt: skip
    assert again.decode().strip() == id


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello\n" * 200, "no tar archive"),
        (ROOT[:5000], "cut off"),
        (gzip.compress(ROOT)[:-10], "truncated"),
        (lzma.compress(ROOT)[:-10], "truncated"),
        (tar({"../evil": b"x"}), "'..'"),
        (gzip.compress(b"no tar" * 500), "tar|checksum"),
    ],
    ids=["empty", "text", "cut off", "gzip cut off", "xz cut off", "above", "gzip of text"],
)
def test_what_is_no_sound_tar_is_refused(shared: Store, data: bytes, words: str) -> None:
    before = shared.images()
    done = shared.pyrun("import", "-", "bad:1", input=data, text=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Traceback" not in done.stderr
    assert any(word.encode() in done.stderr for word in words.split("|")), done.stderr
    assert shared.images() == before
    assert shared.unfinished() == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nothing-there",), "can't be read"),
        (("-c", "RUN make", "-"), "--change"),
        (("-", "Upper"), "lowercase"),
        (("-", f"app@{sha256(b'')}"), "digest"),
        (("--platform", "linux/vax/1/2", "-"), "platform"),
        (("http://registry.example/root.tar",), "not https"),
        (("https://me:secret@registry.example/root.tar",), "user name or password"),
        (("https://",), "not a URL"),
    ],
)
def test_what_can_not_be_meant_is_refused_before_anything_is_read(
    shared: Store, args: tuple[str, ...], words: str
) -> None:
    done = shared.pyrun("import", *args)
    assert done.returncode in (1, 125)
    assert words in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/short.tar":
            self.send_response(200)
            self.send_header("Content-Length", str(len(ROOT)))
            self.end_headers()
            self.wfile.write(ROOT[: len(ROOT) // 2])
            self.close_connection = True
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A web server on loopback with root.tar.gz."""
    (tmp_path / "root.tar.gz").write_bytes(gzip.compress(ROOT))
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_tar_is_fetched_from_a_url(store: Store, url: str) -> None:
    store.pyrun.ok("import", f"{url}/root.tar.gz", "web")
    assert store.pyrun.image("web")["RootFS"]["Layers"] == [sha256(ROOT)]
    assert f"Imported from {url}" in store.pyrun.ok("history", "--no-trunc", "web")
    for path, words in (("gone", "answers 404"), ("short.tar", "broke off")):
        done = store.pyrun("import", f"{url}/{path}", "bad")
        assert done.returncode == 1
        assert words in done.stderr
    assert len(store.images()) == 1
    assert store.unfinished() == []


def test_a_url_that_nothing_answers_at_is_no_registry(store: Store) -> None:
    with socket.socket() as probe:  # bound, and not listening: the port stays nobody's
        probe.bind(("127.0.0.1", 0))
        done = store.pyrun("import", f"http://127.0.0.1:{probe.getsockname()[1]}/root.tar", "bad")
    assert done.returncode == 1
    assert "connection refused" in done.stderr
    assert "registr" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for the owners of files")
def test_owners_and_kinds_of_files_are_kept(fresh: Pyrun) -> None:
    out = io.BytesIO()
    exported = io.BytesIO(fresh.ok("export", _container(fresh), text=False))
    with tarfile.open(fileobj=exported) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            target.addfile(member, source.extractfile(member) if member.isreg() else None)
        for name, kind in (("pipe", tarfile.FIFOTYPE), ("hard", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.uid = kind, 1234
            info.linkname = "bin/busybox" if kind == tarfile.LNKTYPE else ""
            target.addfile(info)
    fresh.ok("import", "-", "kinds", input=out.getvalue(), text=False)
    assert fresh.sh("stat -c '%F %u' /pipe; test /hard -ef /bin/busybox && echo same", image="kinds") == (
        "fifo 1234\nsame\n"
    )


def _container(pyrun: Pyrun) -> str:
    pyrun.ok("run", "--name", "source", "busybox", "true")
    return "source"


def test_export_and_import_make_the_same_files(fresh: Pyrun) -> None:
    name = _container(fresh)
    first = fresh.ok("export", name, text=False)
    fresh.ok("import", "-", "copy", input=first, text=False)
    fresh.ok("run", "--name", "copied", "copy", "/bin/true")
    second = fresh.ok("export", "copied", text=False)

    def listing(data: bytes) -> list[tuple[str, bytes, int, int, int]]:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return [(m.name, m.type, m.mode, m.uid, m.size) for m in archive]

    assert listing(first) == listing(second)
    fresh.ok("rm", "source", "copied")
