"""Capabilities: names, and giving a process exactly the five sets of the spec. On the path of `run`."""

from __future__ import annotations

import prctl

from ..errors import UsageError
from ..kernel import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# include/uapi/linux/capability.h, in numeric order.
NAMES = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
        "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
        "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
        "PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


def numbers(names: Iterable[str]) -> set[int]:
    """Capability numbers of OCI names ("CAP_CHOWN"). Raises `UsageError` for an unknown name."""
    found = set()
    for name in names:
        if name not in _NUMBERS:
            raise UsageError(f"no capability is called {name!r}", hint="Names are those of man capabilities.")
        found.add(_NUMBERS[name])
    return found


def last_known() -> int:
    """The highest capability this kernel has (man proc, /proc/sys/kernel/cap_last_cap)."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def drop_bounding(keep: Iterable[str], last: int) -> None:
    """Leave only ``keep`` in the bounding set; capabilities newer than this table go too."""
    kept = numbers(keep)
    for number in range(last + 1):
        if number in kept:
            continue
        if number <= prctl.CAP_LAST_CAP:
            prctl.capbset_drop(number)
        else:
            process.drop_bounding(number)


def keep_across_setuid() -> None:
    """Let the permitted set survive the change from uid 0; execve clears the flag (man PR_SET_KEEPCAPS)."""
    prctl.set_keepcaps(True)


def set_sets(sets: Mapping[str, Iterable[str]]) -> None:
    """Effective, permitted and inheritable exactly as ``sets`` says, then ambient.

    The inheritable set of a default container is empty (CVE-2022-24769).
    """
    changes = []
    for key, flag in (
        ("effective", prctl.CAP_EFFECTIVE),
        ("permitted", prctl.CAP_PERMITTED),
        ("inheritable", prctl.CAP_INHERITABLE),
    ):
        wanted = numbers(sets.get(key, ()))
        changes += [(number, flag, number in wanted) for number in range(prctl.CAP_LAST_CAP + 1)]
    prctl.set_caps(*changes)
    process.clear_ambient()
    for number in sorted(numbers(sets.get("ambient", ()))):
        process.raise_ambient(number)
