"""Landlock: a process's own limits on which files it may open, make and remove. Needs no privilege.

Source: Documentation/userspace-api/landlock.rst, linux/landlock.h.
"""

from __future__ import annotations

import errno
import os
import struct

from .seccomp import native, numbers
from .syscall import NUMBERS, syscall

_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1
_FIRST = (1 << 13) - 1  # what the first version handles: execute to make_sym
_REFER = 1 << 13  # link and rename from one directory to another
_TRUNCATE = 1 << 14
_EXECUTE = 1


def confine_to(dirfd: int) -> None:
    """From now on this thread, and those it starts, may open, make and remove files below the directory ``dirfd``
    only, and execute none. Needs no_new_privs.

    Raises OSError: ENOSYS or EOPNOTSUPP where the kernel has no Landlock, or one without links between directories
    (before Linux 5.19), which it would refuse.
    """
    arch = native()
    if not arch:
        raise OSError(errno.ENOSYS, "no table of this machine's system calls")
    for name in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
        NUMBERS.setdefault(name, numbers(arch)[name])
    version = syscall("landlock_create_ruleset", None, 0, _VERSION)
    if version < 2:
        raise OSError(errno.EOPNOTSUPP, "Landlock can't link between directories")
    handled = _FIRST | _REFER | (_TRUNCATE if version >= 3 else 0)
    rules = syscall("landlock_create_ruleset", struct.pack("=Q", handled), 8, 0)
    try:
        beneath = struct.pack("=Qi", handled & ~_EXECUTE, dirfd)
        syscall("landlock_add_rule", rules, _PATH_BENEATH, beneath, 0)
        syscall("landlock_restrict_self", rules, 0)
    finally:
        os.close(rules)
