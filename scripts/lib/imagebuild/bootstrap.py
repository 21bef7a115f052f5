"""Packages to trees: mmdebstrap with the machine's own apt sources, the result one tar file a tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .errors import BuildError

# mmdebstrap clamps every time stamp to this, which makes its tar files the same bit for bit.
EPOCH = 1_700_000_000

# What slim images leave out as well; it is a third of the files.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# How this machine reaches its mirrors: proxies, certificates, retries.
_TRANSPORT = re.compile(r"Acquire::(?:https?|ftp|Retries|ForceIPv[46]|Check-)")


def release() -> tuple[str, str]:
    """The apt suite to build from and the text of its sources: the host's, or Debian's where it has none."""
    described: dict[str, str] = {}
    try:
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            described[name] = value.strip("\"'")
    except OSError:
        pass
    suite = described.get("UBUNTU_CODENAME") or described.get("VERSION_CODENAME", "")
    sources = _sources(suite) if suite else ""
    # Without a MIRROR argument mmdebstrap takes the release's official mirror.
    return (suite, sources) if sources else ("bookworm", "")


def _sources(suite: str) -> str:
    """The enabled entries for ``suite`` and its updates, all in deb822 form: one file may not mix two."""
    stanzas: list[str] = []
    folder = Path("/etc/apt/sources.list.d")
    files = [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError:
            continue
        stanzas += deb822(text, suite) if file.suffix == ".sources" else one_line(text, suite)
    return "\n".join(stanzas)


def _of_suite(name: str, suite: str) -> bool:
    return name == suite or name.startswith(suite + "-")


def one_line(text: str, suite: str) -> list[str]:
    """The entries for ``suite`` of a sources.list(5) file that have a section main, as deb822 stanzas."""
    stanzas = []
    for line in text.splitlines():
        entry = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line.strip())
        if entry and _of_suite(entry[3], suite) and "main" in entry[4].split():
            fields = {"Types": "deb", "URIs": entry[2], "Suites": entry[3], "Components": entry[4].strip()}
            for option in (entry[1] or "").split():
                key, _, value = option.partition("=")
                if key in ("signed-by", "trusted"):
                    fields[key.title()] = value.replace(",", " ")
            stanzas.append("".join(f"{key}: {value}\n" for key, value in fields.items()))
    return stanzas


def deb822(text: str, suite: str) -> list[str]:
    """The same of a .sources file, cut down to the suites that are wanted."""
    stanzas = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        fields = {
            key.lower(): value.strip()
            for key, colon, value in (line.partition(":") for line in lines if not line[:1].isspace())
            if colon
        }
        kept = [name for name in fields.get("suites", "").split() if _of_suite(name, suite)]
        if (
            not kept
            or "deb" not in fields.get("types", "").split()
            or "main" not in fields.get("components", "").split()
            or fields.get("enabled", "yes").lower() in ("no", "false", "0")
        ):
            continue
        out = []
        for line in lines:
            if line.lower().startswith("suites:"):
                line = "Suites: " + " ".join(kept)
            elif line.lower().startswith("types:"):
                line = "Types: deb"
            out.append(line)
        stanzas.append("\n".join(out) + "\n")
    return stanzas


def _transport_options() -> list[str]:
    config = shutil.which("apt-config")
    if not config:
        return []
    dump = subprocess.run([config, "dump"], capture_output=True, text=True, check=False).stdout
    return [
        f"--aptopt={line}"
        for line in dump.splitlines()
        if _TRANSPORT.match(line) and not line.endswith('"";')
    ]


def mode() -> str:
    """mmdebstrap's mode: "root", or "unshare" for a user. Raises `BuildError` where neither works."""
    if os.geteuid() == 0:
        return "root"
    if not shutil.which("newuidmap"):
        raise BuildError(
            "building images as an ordinary user needs newuidmap (Debian: apt-get install uidmap), or root"
        )
    works = subprocess.run(
        ["unshare", "--user", "--map-root-user", "true"], capture_output=True, text=True, check=False
    )
    if works.returncode:
        raise BuildError(
            "this kernel gives ordinary users no user namespace: "
            f"{works.stderr.strip() or 'unshare failed'}; build the images as root once, or allow them"
        )
    return "unshare"


def start(tree: Path, log: Path, *, variant: str, packages: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start building ``tree`` (a tar file) and return at once; `finish` waits for it."""
    program = shutil.which("mmdebstrap", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin")
    if not program:
        raise BuildError("mmdebstrap is not installed (Debian, Ubuntu, Fedora: a package of that name)")
    suite, sources = release()
    command = [program, f"--mode={mode()}", f"--variant={variant}", "--format=tar"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    command += ['--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"']
    command += _transport_options()
    if packages:
        command.append("--include=" + ",".join(packages))
    command += [suite, str(tree)]
    if sources:
        listed = tree.with_suffix(".sources")
        listed.write_text(sources, encoding="utf-8")
        command.append(str(listed))
    environ = {
        "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "DEBIAN_FRONTEND": "noninteractive",
        "HOME": os.environ.get("HOME", "/"),
    }
    for name in ("TMPDIR", "http_proxy", "https_proxy", "no_proxy"):
        if name in os.environ:
            environ[name] = os.environ[name]
    with log.open("wb") as out:
        # A session of its own would survive Ctrl-C; the caller's process group is signalled as one.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ)


def finish(running: subprocess.Popen[bytes], tree: Path, log: Path) -> None:
    if running.wait():
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        raise BuildError(f"mmdebstrap failed for {tree.stem} (log: {log}):\n  " + "\n  ".join(last))
