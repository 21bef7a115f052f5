"""Engines that pull, each with an empty store of its own on the directory it is given."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .peers import Absent, installed, output


class Puller:
    """One engine. `begin` makes its store and whatever serves it; `command` pulls; `end` takes all of it away."""

    name: str
    keeps = True  # has a store, which may hold images already

    def __init__(self, registry: str) -> None:
        self.registry = registry
        self.environ: Mapping[str, str] = dict(os.environ)
        self.version = self.find()

    def find(self) -> str:
        """The engine's version. Raises `Absent`."""
        raise NotImplementedError

    def begin(self, place: Path) -> None:
        """An empty store in ``place``, an empty directory. Not timed."""

    def command(self, place: Path, image: str) -> list[str]:
        """The command to time; ``image`` is a repository's name and tag below ``library/``."""
        raise NotImplementedError

    def end(self, place: Path) -> None:
        """Nothing keeps ``place`` busy after this."""

    def reference(self, image: str) -> str:
        return f"{self.registry}/library/{image}"


class Pyrun(Puller):
    def __init__(self, registry: str, driver: str) -> None:
        self.driver = driver
        self.name = "pyrun" if driver == "overlay" else f"pyrun {driver}"
        super().__init__(registry)

    def find(self) -> str:
        return output([installed("pyrun", "-"), "--version"]).strip()

    def base(self, place: Path) -> list[str]:
        return ["pyrun", "--root", str(place / "store"), "--state", str(place / "state")]

    def command(self, place: Path, image: str) -> list[str]:
        return [*self.base(place), "pull", "-q", "--storage", self.driver, self.reference(image)]


class Podman(Puller):
    name = "podman"

    def find(self) -> str:
        return output([installed("podman", "podman"), "--version"]).strip()

    def begin(self, place: Path) -> None:
        self._run = tempfile.mkdtemp(prefix="bench-")
        conf, storage = place / "containers.conf", place / "storage.conf"
        # podman raises its limits and fails where root has no right to (CAP_SYS_RESOURCE).
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        most = 20_000 if hard < 0 else min(hard, 20_000)
        conf.write_text(
            f'[containers]\ndefault_ulimits = ["nofile={most}:{most}"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n',
            encoding="utf-8",
        )
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{place}/graph"\nrunroot = "{self._run}"\n',
            encoding="utf-8",
        )
        self.environ = {
            **os.environ,
            "CONTAINERS_CONF": str(conf),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "TMPDIR": str(place),
        }

    def command(self, place: Path, image: str) -> list[str]:
        return ["podman", "pull", "-q", "--tls-verify=false", self.reference(image)]

    def end(self, place: Path) -> None:
        subprocess.run(["umount", "-l", f"{place}/graph/overlay"], capture_output=True, check=False)
        shutil.rmtree(self._run, ignore_errors=True)


class Served(Puller):
    """An engine with a daemon, started for each round and ended after it."""

    def start(self, command: Sequence[str], log: Path, ready: Sequence[str]) -> None:
        with log.open("wb") as out:
            self._daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        for _ in range(300):
            if not subprocess.run(ready, capture_output=True, env=self.environ, check=False).returncode:
                return
            if self._daemon.poll() is not None:
                break
            time.sleep(0.1)
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        self.stop()
        raise Absent(f"its daemon does not start: {said[-1][-300:] if said else 'it says nothing'}")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._daemon.send_signal(signal.SIGTERM)
        try:
            self._daemon.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._daemon.pid, signal.SIGKILL)
            self._daemon.wait()


class Docker(Served):
    name = "docker"

    def find(self) -> str:
        installed("dockerd", "docker.io")
        return output([installed("dockerd", "docker.io"), "--version"]).strip()

    def begin(self, place: Path) -> None:
        self.environ = {**os.environ, "DOCKER_HOST": f"unix://{place}/docker.sock"}
        (place / "daemon.json").write_text("{}", encoding="utf-8")
        self.start(
            [
                *(
                    "dockerd",
                    "--config-file",
                    str(place / "daemon.json"),
                    "-H",
                    f"unix://{place}/docker.sock",
                ),
                *("--data-root", str(place / "data"), "--exec-root", str(place / "exec")),
                *("-p", str(place / "docker.pid"), "--storage-driver", "overlay2"),
                # A pull needs no network of containers: nothing of this machine's is touched.
                *("--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
                *("--insecure-registry", self.registry),
            ],
            place / "dockerd.log",
            ["docker", "version"],
        )

    def command(self, place: Path, image: str) -> list[str]:
        return ["docker", "pull", "-q", self.reference(image)]

    def end(self, place: Path) -> None:
        self.stop()


class Containerd(Served):
    name = "containerd"

    def find(self) -> str:
        return " ".join(output([installed("containerd", "containerd"), "--version"]).split()[:3])

    def begin(self, place: Path) -> None:
        installed("ctr", "containerd")
        conf = place / "containerd.toml"
        conf.write_text(
            f'version = 2\nroot = "{place}/root"\nstate = "{place}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{place}/containerd.sock"\n',
            encoding="utf-8",
        )
        self.start(
            ["containerd", "-c", str(conf)],
            place / "containerd.log",
            ["ctr", "-a", f"{place}/containerd.sock", "version"],
        )

    def command(self, place: Path, image: str) -> list[str]:
        return [
            *("ctr", "-a", f"{place}/containerd.sock", "image", "pull", "--plain-http"),
            self.reference(image),
        ]

    def end(self, place: Path) -> None:
        self.stop()


class Floor(Puller):
    """What nothing that decompresses and unpacks with these programs can beat: no digest is checked, no blob kept.
    ``at_once`` layers side by side."""

    keeps = False

    def __init__(self, registry: str, layout: Path, decompressor: str, at_once: int) -> None:
        self.layout, self.decompressor, self.at_once = layout, decompressor, at_once
        self.name = f"curl|{decompressor}|tar" + (f" x{at_once}" if at_once > 1 else "")
        super().__init__(registry)

    def find(self) -> str:
        installed("curl", "curl")
        return output([installed(self.decompressor, self.decompressor), "--version"]).split("\n")[0].strip()

    def command(self, place: Path, image: str) -> list[str]:
        lines = []
        for number, digest in enumerate(layers(self.layout, image)):
            target = shlex.quote(f"{place}/{number}")
            url = f"http://{self.registry}/v2/library/{image.partition(':')[0]}/blobs/{digest}"
            lines.append(f"mkdir {target} && curl -fsS {url} | {self.decompressor} -dc | tar -x -C {target}")
        script = "\n".join(lines)
        run_all = f"xargs -d '\\n' -P {self.at_once} -I CMD bash -o pipefail -c CMD"
        return ["bash", "-c", f'printf "%s\\n" "$1" | {run_all}', "-", script]


def layers(layout: Path, image: str) -> list[str]:
    """The digests of an image's layers, out of the layout it was pushed from; the last platform's."""

    def blob(digest: str) -> dict[str, list[dict[str, str]]]:
        path = layout / "blobs" / "sha256" / digest.removeprefix("sha256:")
        return json.loads(path.read_bytes())  # type: ignore[no-any-return]

    index = json.loads((layout / "index.json").read_text(encoding="utf-8"))
    for entry in index["manifests"]:
        if entry["annotations"]["org.opencontainers.image.ref.name"] == image:
            manifest = blob(entry["digest"])["manifests"][-1]["digest"]
            return [layer["digest"] for layer in blob(manifest)["layers"]]
    raise Absent(f"{image} is not among the images")


def field(registry: str, layout: Path, names: Sequence[str]) -> tuple[list[Puller], dict[str, str]]:
    """Those of ``names`` that are installed, and the reason of each other."""
    makers: dict[str, Callable[[], Puller]] = {
        "pyrun": lambda: Pyrun(registry, "overlay"),
        "erofs": lambda: Pyrun(registry, "erofs"),
        "podman": lambda: Podman(registry),
        "docker": lambda: Docker(registry),
        "containerd": lambda: Containerd(registry),
        "gzip": lambda: Floor(registry, layout, "gzip", 2),
        "pigz": lambda: Floor(registry, layout, "pigz", 1),
        "pigz2": lambda: Floor(registry, layout, "pigz", 2),
    }
    found: list[Puller] = []
    absent = {}
    for name in names:
        try:
            found.append(makers[name]())
        except Absent as reason:
            absent[name] = str(reason)
    return found, absent


NAMES = ("pyrun", "erofs", "podman", "docker", "containerd", "gzip", "pigz", "pigz2")
