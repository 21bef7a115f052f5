"""What each image is made of."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from . import tree as trees
from .errors import BuildError
from .layout import Recipe
from .tree import Tree

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

REDIS_PACKAGES = ("redis-server",)
# Compilers and interpreters: many small files, some large ones, hard links, symbolic links and set-uid bits.
BIG_PACKAGES = (
    *("perl", "python3", "python3-venv", "python3-pip", "python3-numpy", "python3-dev", "gcc", "g++", "make"),
    *("cmake", "git", "openssh-client", "ca-certificates", "curl", "tzdata", "locales", "vim", "golang-go"),
)
_BIG_MINIMUM = {"layers": 8, "entries": 30_000, "bytes": 1_000_000_000}

# Written for this image: as the well-known redis image does, an option as first word means redis-server, and
# the server leaves root behind. Protected mode would refuse every client that comes over a container network.
_ENTRYPOINT = b"""\
#!/bin/sh
set -e
case "${1-}" in
    -* | *.conf) set -- redis-server "$@" ;;
esac
if [ "${1-}" = redis-server ]; then
    if [ "$(id -u)" = 0 ]; then
        find . ! -user redis -exec chown -h redis:redis {} +
        exec setpriv --reuid redis --regid redis --init-groups -- "$0" "$@"
    fi
    shift
    case "${1-}" in
        *.conf | -v | --version | -h | --help | --test-memory | --check-system) set -- redis-server "$@" ;;
        *) set -- redis-server --protected-mode no "$@" ;;
    esac
fi
exec "$@"
"""

_BUSYBOX_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n"
    b"daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
    b"www-data:x:33:33:www-data:/var/www:/bin/false\n"
    b"nobody:x:65534:65534:nobody:/home:/bin/false\n",
    "etc/group": b"root:x:0:\ndaemon:x:1:\ntty:x:5:\nwheel:x:10:root\nwww-data:x:33:\nnogroup:x:65534:\n",
    "etc/shadow": b"root:*:::::::\ndaemon:*:::::::\nnobody:*:::::::\n",
}


def busybox(extracted: Path) -> Recipe:
    """One layer: the static busybox of the package and a hard link an applet."""
    packaged = trees.read(extracted)
    entry = packaged.get("usr/bin/busybox") or packaged.get("bin/busybox")
    if entry is None:
        raise BuildError("the package busybox-static has no busybox")
    with entry.open() as content:
        program = content.read()
    tree: Tree = {}
    for name in ("bin", "dev", "etc", "home", "proc", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/www"):
        tree[name] = trees.directory(name)
    tree["root"] = trees.directory("root", mode=0o700)
    tree["tmp"] = trees.directory("tmp", mode=0o1777)
    for name, data in _BUSYBOX_FILES.items():
        tree[name] = trees.made(name, data, mode=0o640 if name == "etc/shadow" else 0o644)
    tree["bin/busybox"] = trees.made("bin/busybox", program, mode=0o755)
    for applet in _applets(program):
        if applet != "busybox":
            tree[f"bin/{applet}"] = trees.hard_link(f"bin/{applet}", "bin/busybox")
    tree["usr/bin/env"] = trees.hard_link("usr/bin/env", "bin/busybox")
    steps: list[tuple[str, Tree | None]] = [("busybox-static of Debian", tree), ('CMD ["sh"]', None)]
    return Recipe("busybox", ("latest", "1"), {"Env": [PATH], "Cmd": ["sh"]}, steps)


def _applets(program: bytes) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "busybox"
        path.write_bytes(program)
        path.chmod(0o700)
        listed = subprocess.run([str(path), "--list"], capture_output=True, text=True, check=True).stdout
    applets = [line for line in listed.split() if re.fullmatch(r"[\w\[.-]+", line, re.ASCII)]
    if "sh" not in applets:
        raise BuildError("busybox --list names no sh")
    return applets


def redis(base: Tree, installed: Tree) -> Recipe:
    """Three layers: Debian's minimal base, the package and its libraries, what makes an image of it."""
    account = next(
        (line.split(":") for line in _lines(installed, "etc/passwd") if line.startswith("redis:")), None
    )
    if account is None:
        raise BuildError("installing redis-server made no user redis")
    uid, gid = int(account[2]), int(account[3])
    version = next(
        iter(re.findall(r"Package: redis-server\n(?:.+\n)*?Version: (?:\d+:)?([\d.]+)", _status(installed)))
    )
    last: Tree = {
        "data": trees.directory("data", uid=uid, gid=gid),
        "usr/local/bin/docker-entrypoint.sh": trees.made(
            "usr/local/bin/docker-entrypoint.sh", _ENTRYPOINT, mode=0o755
        ),
    }
    # Debian's configuration makes a daemon of it; the image runs without one.
    gone = trees.whiteout("etc/redis/redis.conf")
    last[gone.info.name] = gone
    config = {
        "Env": [PATH, f"REDIS_VERSION={version}"],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["redis-server"],
        "ExposedPorts": {"6379/tcp": {}},
        "Volumes": {"/data": {}},
        "WorkingDir": "/data",
    }
    steps: list[tuple[str, Tree | None]] = [
        ("Debian, the minimal base", base),
        ("RUN apt-get install -y --no-install-recommends redis-server", trees.difference(base, installed)),
        (f"ENV REDIS_VERSION={version}", None),
        (
            "COPY docker-entrypoint.sh /usr/local/bin/; rm /etc/redis/redis.conf",
            trees.with_parents(last, installed),
        ),
        ("VOLUME [/data]", None),
        ("WORKDIR /data", None),
        ('ENTRYPOINT ["docker-entrypoint.sh"]', None),
        ("EXPOSE map[6379/tcp:{}]", None),
        ('CMD ["redis-server"]', None),
    ]
    return Recipe("redis", ("latest", version.split(".")[0]), config, steps)


def big(base: Tree, installed: Tree, parts: int = 8) -> Recipe:
    """``parts`` layers of whole packages, about equal in size, between the base and the rest."""
    changed = trees.difference(base, installed)
    owner = _owners(installed)
    sizes: dict[str, int] = {}
    for name, entry in changed.items():
        if name in owner:
            sizes[owner[name]] = sizes.get(owner[name], 0) + entry.info.size + 1024
    bins: list[list[str]] = [[] for _ in range(parts)]
    weight = [0] * parts
    for package in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = weight.index(min(weight))
        bins[lightest].append(package)
        weight[lightest] += sizes[package]
    place = {package: number for number, packages in enumerate(bins) for package in packages}
    layers: list[Tree] = [{} for _ in range(parts + 1)]
    for name, entry in changed.items():
        if entry.info.isdir():
            continue
        # A hard link goes where its file is.
        owned = owner.get(entry.info.linkname if entry.info.islnk() else name, "")
        layers[place.get(owned, parts)][name] = entry
    held = [trees.with_parents(layer, installed) for layer in layers]
    missing = {name: entry for name, entry in changed.items() if not any(name in layer for layer in held)}
    held[parts] = trees.with_parents({**held[parts], **missing}, installed)
    steps: list[tuple[str, Tree | None]] = [("Debian, the minimal base", base)]
    for packages, layer in zip(bins, held[:parts], strict=True):
        steps.append((f"RUN apt-get install -y --no-install-recommends {' '.join(sorted(packages))}", layer))
    steps.append(("RUN dpkg --configure --pending", held[parts]))
    steps.append(("RUN clean up", trees.with_parents(_cleaned(), installed)))
    steps.append(('CMD ["bash"]', None))
    return Recipe("big", ("latest",), {"Env": [PATH], "Cmd": ["bash"]}, steps)


def _cleaned() -> Tree:
    """A last layer that deletes: a directory made new over the old one, and a tree taken away."""
    entries = [
        trees.directory("etc/skel"),
        trees.opaque("etc/skel"),
        trees.made("etc/skel/README", b"Nothing of the layers below is left here.\n"),
        trees.whiteout("usr/share/vim"),
    ]
    return {entry.info.name: entry for entry in entries}


def check_big(layers: int, entries: int, size: int) -> None:
    """Raises `BuildError` where the big image is smaller than what its users count on."""
    got = {"layers": layers, "entries": entries, "bytes": size}
    short = [f"{got[what]} {what}, not {least}" for what, least in _BIG_MINIMUM.items() if got[what] < least]
    if short:
        raise BuildError("the big image came out too small: " + ", ".join(short))


def _lines(tree: Tree, name: str) -> list[str]:
    with tree[name].open() as content:
        return content.read().decode().splitlines()


def _status(tree: Tree) -> str:
    return "\n".join(_lines(tree, "var/lib/dpkg/status")) + "\n"


def _owners(tree: Tree) -> dict[str, str]:
    """File name to package, from dpkg's lists, which know the paths from before /usr was merged."""
    aliases = {
        name: entry.info.linkname for name, entry in tree.items() if "/" not in name and entry.info.issym()
    }
    owner: dict[str, str] = {}
    for name in tree:
        listed = re.fullmatch(r"var/lib/dpkg/info/([^:/]+)(?::\w+)?\.list", name)
        if not listed:
            continue
        for line in _lines(tree, name):
            first, slash, rest = line.lstrip("/").partition("/")
            owner[aliases.get(first, first) + slash + rest] = listed[1]
    return owner
