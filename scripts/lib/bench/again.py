"""What is fetched, and what it costs, when most or all of an image is here already."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagebuild.push import Registry

from pyrun.engine import Engine

from .peers import output
from .timing import Contender, run_once, wait_for_quiet

_BLOB = 400 << 20  # bytes of the download that breaks
_IMAGES = 1000
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass
class Figure:
    name: str
    value: float
    unit: str


class Relay:
    """Connections to the registry, byte by byte, through a port of its own. ``served`` counts the bytes of answers;
    once there are ``limit`` of them no more come, and ``stalled`` is set."""

    def __init__(self, registry: str) -> None:
        host, _, port = registry.rpartition(":")
        self._registry = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.served = 0
        self.heads: list[bytes] = []  # the first line of each request
        self.limit: float = float("inf")
        self.stalled = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._registry)
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._questions, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answers, args=(server, client), daemon=True).start()

    def _questions(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                self.heads.append(data.split(b"\r\n", 1)[0])
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(262144):
                if self.served + len(data) > self.limit:
                    self.stalled.set()
                    break  # the connection stays open: the client waits
                client.sendall(data)
                self.served += len(data)
            else:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()


def _large_image(registry: str, folder: Path) -> None:
    """Push library/broken:latest, one layer of `_BLOB` random bytes."""
    layer = folder / "layer.tar"
    header = bytearray(512)
    header[0:5] = b"large"
    header[100:108], header[108:116], header[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    header[124:136] = b"%011o\0" % _BLOB
    header[136:148], header[156:157], header[257:265] = b"00000000000\0", b"0", b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    state = hashlib.sha256()
    with layer.open("wb") as out:
        for piece in (bytes(header), *(os.urandom(1 << 20) for _ in range(_BLOB >> 20)), bytes(1024)):
            state.update(piece)
            out.write(piece)
    digest = "sha256:" + state.hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    data = json.dumps(config).encode()
    config_file = folder / "config.json"
    config_file.write_bytes(data)
    config_digest = "sha256:" + hashlib.sha256(data).hexdigest()
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": config_digest, "size": len(data)},
        "layers": [{"mediaType": _LAYER, "digest": digest, "size": layer.stat().st_size}],
    }
    target = Registry(registry)
    target.blob("library/broken", digest, layer)
    target.blob("library/broken", config_digest, config_file)
    target.manifest("library/broken", "latest", _MANIFEST, json.dumps(manifest).encode())
    layer.unlink()


def _base(folder: Path, name: str) -> list[str]:
    return ["pyrun", "--root", str(folder / name / "store"), "--state", str(folder / name / "state")]


@contextmanager
def _relay(registry: str) -> Iterator[Relay]:
    relay = Relay(registry)
    try:
        yield relay
    finally:
        relay.close()


def resumed(folder: Path, registry: str) -> Figure:
    """Of the blob's bytes, in per cent: how many come again when a pull is killed at 90 % and pulled once more."""
    _large_image(registry, folder)
    with _relay(registry) as relay:
        command = [*_base(folder, "resumed"), "pull", "-q", f"{relay.address}/library/broken"]
        relay.limit = 0.9 * _BLOB
        with tempfile.TemporaryFile() as said:
            first = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
            if not relay.stalled.wait(120):
                first.kill()
                raise RuntimeError("the pull that was to be broken did not come so far")
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
        relay.limit, before = float("inf"), relay.served
        output(command)
        return Figure(
            "bytes again after a break at 90 % of 400 MB", 100 * (relay.served - before) / _BLOB, "%"
        )


def _timed(command: list[str], rounds: int, quiet: float) -> float:
    """Median milliseconds of the whole process, after one round of warm-up."""
    contender = Contender(command[0], "", command, dict(os.environ))
    for number in range(rounds + 1):
        wait_for_quiet(quiet)
        seconds = run_once(contender)
        if number:
            contender.seconds.append(seconds)
    return 1000 * statistics.median(contender.seconds)


def present(folder: Path, registry: str, rounds: int, quiet: float) -> list[Figure]:
    """Pulls of what is here: by tag one HEAD, by digest nothing; and listing many images."""
    base = _base(folder, "present")
    with _relay(registry) as relay:
        name = f"{relay.address}/library/busybox"
        output([*base, "pull", "-q", name])
        asked = len(relay.heads)
        output([*base, "pull", "-q", name])
        by_tag = relay.heads[asked:]
        digest = json.loads(output([*base, "inspect", name]))[0]["RepoDigests"][0]
        asked = len(relay.heads)
        output([*base, "pull", "-q", digest])
        by_digest = relay.heads[asked:]
        found = [
            Figure("requests of a pull of a present tag", len(by_tag), " ".join(_methods(by_tag))),
            Figure("requests of a pull of a present digest", len(by_digest), " ".join(_methods(by_digest))),
            Figure("pull of a present tag", _timed([*base, "pull", "-q", name], rounds, quiet), "ms"),
            Figure("pull of a present digest", _timed([*base, "pull", "-q", digest], rounds, quiet), "ms"),
        ]
    engine = Engine(root=str(folder / "present" / "store"), state=str(folder / "present" / "state"))
    for number in range(_IMAGES - 1):
        engine.tag(name, f"example.com/team{number % 10}/app{number}:1.{number}")
    found.append(Figure(f"images, of {_IMAGES}", _timed([*base, "images"], rounds, quiet), "ms"))
    found.append(
        Figure("pyrun --version, for comparison", _timed(["pyrun", "--version"], rounds, quiet), "ms")
    )
    return found


def _methods(heads: list[bytes]) -> list[str]:
    return [head.split(b" ")[0].decode() for head in heads]


def figures(folder: Path, registry: str, rounds: int, quiet: float) -> list[Figure]:
    """All of them, each in a new store below ``folder``."""
    return [resumed(folder, registry), *present(folder, registry, max(rounds, 5), quiet)]
