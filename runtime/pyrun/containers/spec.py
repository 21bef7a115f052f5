"""The OCI runtime spec of a container: image config + options → dict. On the path of `run`.

Follows docker where the runtime spec leaves a choice: capabilities, masked paths, mounts, environment.
"""

from __future__ import annotations

import os

from ..errors import ContainerError, UsageError
from .volumes import mount_point

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .options import ContainerOptions
    from .users import User

# docker's default set (moby, oci/caps/defaults.go).
CAPABILITIES = [
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
        "SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
]
MASKED = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES = ("mount", "pid", "uts", "ipc", "cgroup")


def entrypoint(image: dict[str, Any], options: ContainerOptions) -> list[str]:
    """The argv's part that is ENTRYPOINT: --entrypoint, else the image's."""
    if options.entrypoint is None:
        return list(image.get("Entrypoint") or [])
    return [options.entrypoint] if options.entrypoint else []


def command(image: dict[str, Any], arguments: Sequence[str], options: ContainerOptions) -> list[str]:
    """The argv: ENTRYPOINT, then the arguments, or CMD where there are none. Raises `ContainerError`.

    --entrypoint replaces ENTRYPOINT and drops CMD.
    """
    default = list(image.get("Cmd") or []) if options.entrypoint is None else []
    argv = entrypoint(image, options) + (list(arguments) or default)
    if not argv:
        raise ContainerError(
            "no command given, and the image has none",
            hint="Name one after the image: pyrun run IMAGE COMMAND.",
        )
    for argument in argv:
        if "\0" in argument:
            raise ContainerError("an argument contains a NUL byte")
    return argv


def given_environment(options: ContainerOptions) -> dict[str, str]:
    """The variables of --env-file, then -e. Reads the files, which may be pipes: call it once."""
    items = [item for path in options.env_files for item in _env_file(path)] + options.env
    variables: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name or "\0" in item:
            raise UsageError(f"invalid environment variable {item!r}", hint="Write NAME=value, or NAME.")
        if equals:
            variables[name] = value
        elif name in os.environ:
            variables[name] = os.environ[name]
    return variables


def environment(image: dict[str, Any], given: dict[str, str], hostname: str, *, tty: bool) -> list[str]:
    """The image's variables, then ``given``; each name once. HOME is added when the user is known."""
    name, _, value = PATH.partition("=")
    variables = {name: value, "HOSTNAME": hostname}
    if tty:
        variables["TERM"] = "xterm"
    for item in image.get("Env") or []:
        name, equals, value = item.partition("=")
        if equals and name:
            variables[name] = value
    variables.update(given)
    return [f"{name}={value}" for name, value in variables.items()]


def _env_file(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\r") for line in file.read().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"can't read the environment file {path}: {reason}") from error
    found = []
    for number, line in enumerate(lines, 1):
        item = line.lstrip()
        if not item or item.startswith("#"):
            continue
        name = item.partition("=")[0]
        if not name or any(c.isspace() for c in name):
            raise UsageError(
                f"{path}, line {number}: the variable name {name!r} is empty or has white space in it"
            )
        found.append(item)
    return found


def tmpfs_mount(text: str) -> dict[str, Any]:
    """--tmpfs PATH[:OPTIONS] as a spec mount; docker's default options are rw,noexec,nosuid,nodev."""
    path, _, given = text.partition(":")
    path = mount_point(f"--tmpfs {text}", path)
    options = ["noexec", "nosuid", "nodev"]
    known = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge")
    flags = "ro rw noexec exec nosuid suid nodev dev noatime relatime strictatime".split()
    for option in filter(None, given.split(",")):
        name, equals, _ = option.partition("=")
        if (equals and name not in known) or (not equals and name not in flags):
            raise UsageError(
                f"--tmpfs {text}: unknown option {option!r}", hint=f"Known: {', '.join([*known, *flags])}."
            )
        options.append(option)
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options}


def bind_mount(
    source: str, destination: str, *, readonly: bool = False, idmap: bool, nodev: bool = False
) -> dict[str, Any]:
    """A recursive bind, private to the container; ``idmap`` shows its files by the container's ids."""
    options = ["rbind", "rprivate", "ro" if readonly else "rw", *(["ridmap"] if idmap else [])]
    if nodev:
        options.append("nodev")
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def has_cgroup2() -> bool:
    """Whether this process is in a cgroup v2 hierarchy that a container could be shown."""
    with open("/proc/self/cgroup") as file:
        return any(line.startswith("0::") for line in file)


def _system_mounts(network: str, *, rootless: bool) -> list[dict[str, Any]]:
    def entry(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        return {"destination": destination, "type": kind, "source": source, "options": list(options)}

    safe = ("nosuid", "noexec", "nodev")
    sys = (
        # sysfs belongs to a network namespace; of the host's, the container may see a read-only clone. In
        # the rootless engine's mount namespace what is mounted below /sys can't be left out of it.
        entry("/sys", "bind", "/sys", "rbind" if rootless else "bind", "ro", *safe)
        if network == "host"
        else entry("/sys", "sysfs", "sysfs", "ro", *safe)
    )
    mounts = [
        entry("/proc", "proc", "proc", *safe),
        entry("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        entry(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        entry("/dev/shm", "tmpfs", "shm", *safe, "mode=1777", "size=65536k"),
        entry("/dev/mqueue", "mqueue", "mqueue", *safe),
        sys,
    ]
    if has_cgroup2():
        mounts.append(entry("/sys/fs/cgroup", "cgroup", "cgroup", "ro", *safe))
    return mounts


def build(
    *,
    argv: list[str],
    env: list[str],
    cwd: str,
    hostname: str,
    network: str,
    tty: bool,
    readonly: bool,
    mounts: list[dict[str, Any]],
    userns: bool,
    rootless: bool,
) -> dict[str, Any]:
    """The whole spec but for what only the start knows: the user, looked up in the mounted rootfs
    (`set_user`), and the id maps of the user namespace that ``userns`` asks for. ``rootless``: the engine
    itself works in a user namespace."""
    namespaces = [*NAMESPACES, *(["network"] if network == "none" else []), *(["user"] if userns else [])]
    capabilities = CAPABILITIES
    if not userns and not rootless:
        # As the host's root it could make any device node, and there is no device cgroup yet to stop its use.
        capabilities = [name for name in CAPABILITIES if name != "CAP_MKNOD"]
    return {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": tty,
            "user": {"uid": 0, "gid": 0},
            "args": argv,
            "env": env,
            "cwd": cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": False,
        },
        "root": {"path": "rootfs", "readonly": readonly},
        "hostname": hostname,
        "mounts": [*_system_mounts(network, rootless=rootless), *mounts],
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces],
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
        },
    }


def set_user(spec: dict[str, Any], user: User) -> None:
    """Let the process run as ``user``, with HOME where neither the image nor the caller set it."""
    process = spec["process"]
    process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups, "umask": 0o022}
    if not any(item.startswith("HOME=") for item in process["env"]):
        process["env"].append(f"HOME={user.home}")
