"""The way into the kernel: syscall(2) and a few libc functions, with errno turned into OSError.

On the path of `run`.

``trace`` is called after every call with its name, its arguments and its result (an int, or the OSError),
when set. It runs in whatever process makes the call, the container's first process included, so it must
not raise, and must write with os.write only.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

trace: Callable[[str, tuple[Any, ...], int | OSError], None] | None = None

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

# Calls up to 2019 have a number per architecture; from 424 on all architectures share one table.
_X86_64 = {
    "pivot_root": 155,
    "capset": 126,
    "capget": 125,
    "syncfs": 306,
    "setns": 308,
    "getdents64": 217,
    "renameat2": 316,
}
_GENERIC = {
    "pivot_root": 41,
    "capset": 91,
    "capget": 90,
    "syncfs": 267,
    "setns": 268,
    "getdents64": 61,
    "renameat2": 276,
}
_COMMON = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}
NUMBERS = {**_COMMON, **(_X86_64 if os.uname().machine == "x86_64" else _GENERIC)}


def _finish(name: str, args: tuple[Any, ...], result: int, shown: object) -> int:
    error = None
    if result < 0:
        number = ctypes.get_errno()
        error = OSError(number, f"{name}: {os.strerror(number)}")
        if shown is not None:
            error.filename = shown
    if trace is not None:
        trace(name, args, error or result)
    if error is not None:
        raise error
    return result


def syscall(name: str, *args: Any, path: object = None) -> int:
    """One system call by name: ints as C longs, bytes as pointers, None as NULL; ``path`` is for errors.

    syscall(2) is variadic: an int that is not widened explicitly may reach the kernel with garbage in its
    upper half.
    """
    converted = [
        ctypes.c_long(a)
        if isinstance(a, int)
        else ctypes.c_char_p(a)
        if a is None or isinstance(a, bytes)
        else a
        for a in args
    ]
    return _finish(name, args, libc.syscall(ctypes.c_long(NUMBERS[name]), *converted), path)


def function(name: str, *args: Any, path: object = None) -> int:
    """One libc function whose failure is -1 with errno, arguments converted as in `syscall`."""
    converted = [
        ctypes.c_ulong(a & 0xFFFFFFFFFFFFFFFF)
        if isinstance(a, int)
        else ctypes.c_char_p(a)
        if a is None or isinstance(a, bytes)
        else a
        for a in args
    ]
    return _finish(name, args, getattr(libc, name)(*converted), path)
