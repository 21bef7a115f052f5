"""The engines to compare with: whichever are installed, each with a store of its own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from .timing import Contender


class Absent(Exception):
    """The engine can't take part; the message says why, and what would change it."""


def output(command: list[str], environ: Mapping[str, str] | None = None, timeout: float = 120) -> str:
    try:
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Absent(f"`{' '.join(command[:3])} …` gave no answer within {timeout:.0f} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Absent(f"`{' '.join(command[:3])} …` failed: {said[-1] if said else done.returncode}")
    return done.stdout


def installed(name: str, package: str) -> str:
    found = shutil.which(name)
    if not found:
        raise Absent(f"not installed (Debian: apt-get install {package})")
    return found


class Field:
    """Where the contenders live: a work folder, and the registry that has library/busybox."""

    def __init__(self, work: Path, registry: str, layout: Path, cleanup: ExitStack) -> None:
        self.work, self.registry, self.layout, self.cleanup = work, registry, layout, cleanup
        self.image = f"{registry}/library/busybox:latest"
        self._bundle: Path | None = None

    def pyrun(self) -> Contender:
        program = installed("pyrun", "-")
        conf = self.work / "registries.conf"
        conf.write_text(
            '[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\n\n'
            f'[[registry.mirror]]\nlocation = "{self.registry}"\ninsecure = true\n',
            encoding="utf-8",
        )
        environ = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(conf)}
        base = [
            program,
            "--root",
            str(self.work / "pyrun" / "store"),
            "--state",
            str(self.work / "pyrun" / "state"),
        ]
        output([*base, "pull", "-q", "busybox"], environ)
        version = output([program, "--version"]).strip()
        command = [*base, "run", "--rm", "--network", "none", "busybox", "true"]
        return Contender("pyrun", version, command, environ)

    def podman(self) -> Contender:
        program = installed("podman", "podman")
        folder = self.work / "podman"
        folder.mkdir()
        # Below a long run root conmon's socket names get too long: each start then waits 20 s for its exit.
        run = tempfile.mkdtemp(prefix="bench-")
        self.cleanup.callback(shutil.rmtree, run, ignore_errors=True)
        # podman sets limits of its own on its way and then wants higher ones for the container, for which
        # some machines give root no right (CAP_SYS_RESOURCE); its own are never below these.
        limits = {"nofile": (resource.RLIMIT_NOFILE, 20_000), "nproc": (resource.RLIMIT_NPROC, 32_768)}
        hard = {name: (resource.getrlimit(number)[1], most) for name, (number, most) in limits.items()}
        values = {name: most if value < 0 else min(value, most) for name, (value, most) in hard.items()}
        entries = ", ".join(f'"{name}={value}:{value}"' for name, value in values.items())
        conf, storage = folder / "containers.conf", folder / "storage.conf"
        conf.write_text(
            f"[containers]\ndefault_ulimits = [{entries}]\n"
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n',
            encoding="utf-8",
        )
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{run}"\n',
            encoding="utf-8",
        )
        environ = {**os.environ, "CONTAINERS_CONF": str(conf), "CONTAINERS_STORAGE_CONF": str(storage)}
        # podman bind-mounts its graph root on itself and leaves that behind.
        self.cleanup.callback(
            subprocess.run, ["umount", "-l", f"{folder}/graph/overlay"], capture_output=True
        )
        output([program, "pull", "-q", "--tls-verify=false", self.image], environ)
        command = [program, "run", "--rm", "--network", "none", self.image, "true"]
        return Contender("podman", output([program, "--version"]).strip(), command, environ)

    def docker(self) -> Contender:
        program = installed("docker", "docker.io")
        try:
            server = output([program, "version", "--format", "{{.Server.Version}}"], timeout=10).strip()
        except Absent:
            raise Absent("its daemon does not answer (DOCKER_HOST names another one)") from None
        output([program, "pull", "-q", self.image])
        # The one thing left in a store that is not this benchmark's.
        self.cleanup.callback(subprocess.run, [program, "rmi", self.image], capture_output=True)
        command = [program, "run", "--rm", "--network", "none", self.image, "true"]
        return Contender("docker", f"docker {server}", command, dict(os.environ))

    def runc(self) -> Contender:
        return self._runtime("runc")

    def crun(self) -> Contender:
        return self._runtime("crun")

    def _runtime(self, name: str) -> Contender:
        program = installed(name, name)
        bundle = self._rootfs()
        target = self.work / f"bundle-{name}"
        target.mkdir()
        output(
            [program, "spec", "--bundle", str(target)]
            if name == "runc"
            else [program, "spec", "-b", str(target)]
        )
        spec = json.loads((target / "config.json").read_text(encoding="utf-8"))
        spec["process"].update(terminal=False, args=["true"])
        spec["root"] = {"path": str(bundle), "readonly": True}
        # As with podman: default limits that this machine may not grant.
        spec["process"].pop("rlimits", None)
        (target / "config.json").write_text(json.dumps(spec), encoding="utf-8")
        state = str(self.work / f"state-{name}")
        command = [program, "--root", state, "run", "--bundle", str(target), "bench-start"]
        return Contender(name, output([program, "--version"]).split("\n")[0], command, dict(os.environ))

    def _rootfs(self) -> Path:
        """busybox unpacked, out of the same blobs that the registry serves."""
        if self._bundle is None:
            index = json.loads((self.layout / "index.json").read_text(encoding="utf-8"))
            wanted = next(
                entry
                for entry in index["manifests"]
                if entry["annotations"]["org.opencontainers.image.ref.name"] == "busybox:latest"
            )
            image = json.loads(self._blob(wanted["digest"]).read_bytes())["manifests"][-1]
            layer = json.loads(self._blob(image["digest"]).read_bytes())["layers"][0]
            self._bundle = self.work / "rootfs"
            self._bundle.mkdir()
            output(["tar", "-xzf", str(self._blob(layer["digest"])), "-C", str(self._bundle)])
        return self._bundle

    def _blob(self, digest: str) -> Path:
        return self.layout / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def all(self, names: list[str]) -> tuple[list[Contender], dict[str, str]]:
        """Those of ``names`` that can take part, and the reason of each other."""
        contenders, absent = [], {}
        for name in names:
            make: Callable[[], Contender] = getattr(self, name)
            try:
                contenders.append(make())
            except Absent as reason:
                absent[name] = str(reason)
        return contenders, absent
