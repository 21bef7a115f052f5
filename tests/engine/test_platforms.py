"""Images of other platforms: pulled, looked at, and run only where the kernel has an emulator for them."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.engine.foreign import check_runs
from pyrun.errors import Unsupported
from pyrun.images.platform import host
from pyrun.sandbox.binfmt import emulator
from support.pyrun import COMMAND, Pyrun
from support.registry import HOST_ARCHITECTURE, Registry
from support.rootless import FIRST, as_user

FOREIGN = "s390x" if HOST_ARCHITECTURE != "s390x" else "ppc64"
MACHINE = {"s390x": 22, "ppc64": 21}[FOREIGN]
# The first 20 bytes of its programs, and which bits of them matter, as qemu's registration has them.
MAGIC = b"\x7fELF\x02\x02\x01" + bytes(10) + b"\x02" + struct.pack(">H", MACHINE)
MASK = b"\xff" * 7 + b"\xfc" + b"\xff" * 9 + b"\xfe\xff\xff"


def layer(program: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("program")
        info.size, info.mode = len(program), 0o755
        archive.addfile(info, io.BytesIO(program))
    return out.getvalue()


@pytest.fixture(scope="module")
def foreign(registry: Registry) -> str:
    """An image for another architecture; its program says so in its header, and is nothing else."""
    registry.push_image(
        "library/foreign", "latest", [layer(MAGIC + bytes(100))], {"Cmd": ["/program"]},
        platform=f"linux/{FOREIGN}", other_platform=False,
    )  # fmt: skip
    return "foreign"


def test_it_is_pulled_on_request_and_inspected_and_running_it_says_why_not(
    fresh: Pyrun, foreign: str
) -> None:
    refused = fresh("pull", foreign)
    assert refused.returncode == 1
    assert f"is an image for linux/{FOREIGN}, not for" in refused.stderr
    assert f"--platform linux/{FOREIGN}" in refused.stderr
    fresh.ok("pull", "-q", "--platform", f"linux/{FOREIGN}", foreign)
    assert json.loads(fresh.ok("inspect", foreign))[0]["Architecture"] == FOREIGN
    if emulator(FOREIGN) is not None:
        pytest.skip("needs a host without an emulator of its own")
    for options in ([], ["--platform", f"linux/{FOREIGN}"]):
        done = fresh("run", "--rm", *options, foreign)
        assert (done.returncode, done.stdout) == (125, "")
        assert f"is an image for linux/{FOREIGN}, and this host runs linux/{HOST_ARCHITECTURE}" in done.stderr
        assert f"no emulator for {FOREIGN} is registered" in done.stderr
        assert f"--platform linux/{HOST_ARCHITECTURE}" in done.stderr
    assert fresh.records() == []


def test_windows_images_do_not_run(fresh: Pyrun, registry: Registry) -> None:
    registry.push_image(
        "library/panes",
        "latest",
        [layer(b"MZ")],
        platform=f"windows/{HOST_ARCHITECTURE}",
        other_platform=False,
    )
    done = fresh("run", "--rm", "--platform", f"windows/{HOST_ARCHITECTURE}", "panes", "cmd")
    assert done.returncode == 125
    assert f"is an image for windows/{HOST_ARCHITECTURE}" in done.stderr


def test_a_native_image_is_run_without_a_look_at_platforms(pyrun: Pyrun) -> None:
    done = pyrun("run", "--rm", "busybox", "true", env={**pyrun.env, "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    assert "pyrun.images.local" in done.stderr
    assert "pyrun.engine.foreign" not in done.stderr
    assert "pyrun.images.platform" not in done.stderr


# --- with an emulator


def static(text: bytes) -> bytes:
    """A static program for x86-64 that prints ``text`` and exits with 7: write(2), exit(2), and the text."""
    code = b"\xb8\x01\0\0\0\xbf\x01\0\0\0\x48\x8d\x35\x13\0\0\0\xba" + struct.pack("<I", len(text))
    code += b"\x0f\x05\xb8\x3c\0\0\0\xbf\x07\0\0\0\x0f\x05" + text
    base = 0x400000
    size = 120 + len(code)
    head = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


@pytest.fixture
def place(base: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="binfmt-", dir=base) as directory:
        os.chown(directory, FIRST, FIRST)
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to map ids")
@pytest.mark.skipif(HOST_ARCHITECTURE != "amd64", reason="needs x86-64, which its emulator is a program for")
def test_it_runs_by_a_registered_emulator_that_containers_can_reach(
    place: Path, mirror: Path, foreign: str
) -> None:
    """In a user namespace with a binfmt_misc of its own (Linux 6.7), so that the host's is not touched."""
    mounted = "/proc/sys/fs/binfmt_misc"

    def work() -> list[tuple[int, str, str]]:
        mount = subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", mounted], capture_output=True)
        if mount.returncode:
            return []
        said = []
        env = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(mirror), "HOME": str(place)}

        def pyrun(*arguments: str) -> None:
            line = [COMMAND, "--root", str(place / "store"), "--state", str(place / "state"), *arguments]
            done = subprocess.run(line, capture_output=True, text=True, env=env, timeout=60)
            said.append((done.returncode, done.stdout, done.stderr))

        program = place / "emulator"
        program.write_bytes(static(b"emulated\n"))
        program.chmod(0o755)
        pyrun("pull", "-q", "--platform", f"linux/{FOREIGN}", foreign)
        for name, flags in (("late", ""), ("early", "F")):
            escaped = ["".join(f"\\x{byte:02x}" for byte in data) for data in (MAGIC, MASK)]
            Path(mounted, "register").write_text(f":{name}:M::{escaped[0]}:{escaped[1]}:{program}:{flags}")
            pyrun("run", "--rm", foreign)
            pyrun("run", "--rm", "--platform", f"linux/{FOREIGN}", foreign)
        Path(mounted, "early").write_text("0")
        pyrun("run", "--rm", foreign)
        return said

    said = as_user(work)
    if not said:
        pytest.skip("needs binfmt_misc in user namespaces (Linux 6.7)")
    pulled, unreachable, _, unasked, asked, disabled = said
    assert pulled[0] == 0, pulled[2]
    assert unreachable[0] == 125
    assert "registered without the flag F" in unreachable[2]
    assert unasked[:2] == [7, "emulated\n"], unasked[2]
    assert unasked[2].startswith(f"WARNING: The requested image's platform (linux/{FOREIGN}) does not match")
    assert asked == [7, "emulated\n", ""]
    assert disabled[0] == 125


# --- the look at what is registered

QEMU = {
    "qemu-aarch64": (
        "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n"
        "magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
    ),
    "qemu-arm": (
        "enabled\ninterpreter /usr/bin/qemu-arm-static\nflags: F\noffset 0\n"
        "magic 7f454c4601010100000000000000000002002800\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
    ),
    "qemu-riscv64": (
        "disabled\ninterpreter /usr/bin/qemu-riscv64-static\nflags: F\noffset 0\n"
        "magic 7f454c460201010000000000000000000200f300\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
    ),
    "qemu-s390x": (
        "enabled\ninterpreter /usr/bin/qemu-s390x-static\nflags: \noffset 0\n"
        "magic 7f454c4602020100000000000000000000020016\nmask ffffffffffffff00fffffffffffffffffffeffff\n"
    ),
    "python3.11": "enabled\ninterpreter /usr/bin/python3.11\nflags: \noffset 0\nmagic a70d0d0a\n",
    "jar": "enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .jar\n",
    "exact": (
        "enabled\ninterpreter /opt/loong\nflags: F\noffset 18\nmagic 0201\n"  # 258, at e_machine
    ),
    "broken": "enabled\ninterpreter /x\nflags: F\noffset zero\nmagic zz\n",
    "uneven": "enabled\ninterpreter /x\nflags: F\noffset 0\nmagic 7f454c46\nmask ff\n",
}


@pytest.fixture
def registered(tmp_path: Path) -> Path:
    """A directory as the kernel shows binfmt_misc."""
    for name, text in {**QEMU, "status": "enabled\n", "register": ""}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("architecture", "found"),
    [
        ("arm64", ("/usr/bin/qemu-aarch64-static", True)),
        ("arm", ("/usr/bin/qemu-arm-static", True)),
        ("s390x", ("/usr/bin/qemu-s390x-static", False)),
        ("riscv64", None),
        ("ppc64le", None),
        ("loong64", ("/opt/loong", True)),
        ("vax", None),
    ],
)
def test_an_emulator_is_found_by_the_header_of_its_programs(
    registered: Path, architecture: str, found: tuple[str, bool] | None
) -> None:
    seen = emulator(architecture, str(registered))
    assert (seen and (seen.path, seen.fixed)) == found


def test_one_that_containers_can_reach_is_taken_before_one_that_they_can_not(registered: Path) -> None:
    (registered / "zz").write_text(
        QEMU["qemu-s390x"].replace("flags: ", "flags: F").replace("/usr/bin", "/opt")
    )
    seen = emulator("s390x", str(registered))
    assert seen is not None
    assert (seen.path, seen.fixed) == ("/opt/qemu-s390x-static", True)


@pytest.mark.parametrize("status", ["disabled\n", None])
def test_where_the_kernel_uses_none_there_is_none(registered: Path, status: str | None) -> None:
    (registered / "status").unlink()
    if status:
        (registered / "status").write_text(status)
    assert emulator("arm64", str(registered)) is None


def test_what_runs_here_is_let_through_and_the_rest_told_apart(registered: Path) -> None:
    own = host()
    assert check_runs("x", f"linux/{own.architecture}", asked=False, directory=str(registered)) == ""
    if own.architecture != "arm64":
        assert check_runs("x", "linux/arm64", asked=True, directory=str(registered)) == ""
        assert "does not match" in check_runs("x", "linux/arm64/v8", asked=False, directory=str(registered))
    for platform, says in (
        ("linux/riscv64", "no emulator for riscv64"),
        ("windows/amd64", "is an image for windows/amd64"),
        (f"linux/{own.architecture}/v9", "whose processor lacks what v9 needs"),
        ("linux/\x1b[2Jevil", r"no emulator for \x1b[2Jevil"),
    ):
        with pytest.raises(Unsupported) as caught:
            check_runs("x", platform, asked=False, directory=str(registered))
        assert says in caught.value.message
        assert caught.value.message.isprintable()
        assert f"--platform linux/{own.architecture} x" in caught.value.hint
