"""Seccomp filters: rules by the names of system calls, compiled to the classic BPF that seccomp(2) takes.

A filter is compiled for one architecture. Calls of any other (32-bit calls on a 64-bit kernel, x32) kill the process:
their numbers mean something else (man seccomp, "Caveats").

Source: linux/seccomp.h, linux/filter.h, linux/audit.h, Documentation/networking/filter.rst.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from .process import set_no_new_privs
from .syscall import libc

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

# Of linux/audit.h: machine, and the bits for 64 bits and little endian.
AUDIT_ARCH = {
    "x86_64": 0xC000003E,
    "aarch64": 0xC00000B7,
    "riscv64": 0xC00000F3,
    "loongarch64": 0xC0000102,
    "i386": 0x40000003,
    "arm": 0x40000028,
    "ppc64le": 0xC0000015,
    "s390x": 0x80000016,
}
_COLUMN = {
    "x86_64": 0,
    "aarch64": 1,
    "riscv64": 1,
    "loongarch64": 1,
    "i386": 2,
    "arm": 3,
    "ppc64le": 4,
    "s390x": 5,
}

# What 32-bit programs are on the machine that uname(2) names.
_NARROW = {
    "x86_64": "i386",
    "i686": "i386",
    "i586": "i386",
    "aarch64": "arm",
    "armv7l": "arm",
    "armv8l": "arm",
}

_MODE_FILTER = 1
_FLAG_TSYNC = 1

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL = 0x15
_IF_GREATER = 0x25
_IF_AT_LEAST = 0x35
_RETURN = 0x06

# struct seccomp_data: the number, the architecture, the instruction pointer, six 64-bit arguments.
_AT_NUMBER, _AT_ARCH, _AT_ARGS = 0, 4, 16
_MOST = 4096  # BPF_MAXINSNS

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def errno_action(number: int) -> int:
    """The action that makes a call fail with the error ``number``."""
    return _ERRNO | number & 0xFFFF


class Arg(NamedTuple):
    """A condition on argument number ``at`` (0 to 5), compared without sign over 64 bits: ``op`` is one of
    "==", "!=", "<", "<=", ">", ">=", or "&", which holds where the argument under ``mask`` equals ``value``."""

    at: int
    op: str
    value: int
    mask: int = 0xFFFFFFFFFFFFFFFF


class Rule(NamedTuple):
    """What happens where every condition of ``when`` holds."""

    action: int
    when: Sequence[Arg] = ()


def native() -> str:
    """The architecture of this interpreter's calls, or "" for one that is not in the table."""
    machine = os.uname().machine
    if struct.calcsize("P") == 4:
        return _NARROW.get(machine, "")
    return machine if machine in AUDIT_ARCH else ""


@cache
def numbers(arch: str) -> Mapping[str, int]:
    """Every system call of ``arch`` by name. Raises KeyError for an architecture that is not in `AUDIT_ARCH`."""
    column = _COLUMN[arch]
    found = {}
    with open(os.path.join(os.path.dirname(__file__), "syscalls.txt"), encoding="ascii") as file:
        for line in file:
            if line[0] == "#":
                continue
            name, *row = line.split()
            number = row[column if len(row) > 1 else 0]
            if number != "-":
                found[name] = int(number)
    return found


def compiled(
    arch: str, rules: Mapping[str, Sequence[Rule]], default: int, *, unknown: int | None = None
) -> bytes:
    """The program for ``arch``, as an array of struct sock_filter.

    Of a call's rules the first whose conditions hold decides; where none does, and for other calls, ``default``. Names
    that the architecture has no call for are left out. ``unknown`` is for numbers beyond the table: calls of later
    kernels, for which libraries have other ways if told ENOSYS.

    Raises ValueError for a program that the kernel would not take.
    """
    table = numbers(arch)
    swapped = arch == "s390x"
    nothing = _decide((), default, swapped)
    decided = {table[name]: _decide(rules[name], default, swapped) for name in rules if name in table}
    # What holds from a number on, up to the next one in it.
    starts = {0: nothing, **{number + 1: nothing for number in decided}, **decided}
    if unknown is not None:
        last = max(table.values())
        starts = {number: code for number, code in starts.items() if number <= last}
        starts[last + 1] = [_return(unknown)]
    leaves: list[tuple[int, list[Instruction]]] = []
    for leaf in sorted(starts.items()):
        if not leaves or leaves[-1][1] != leaf[1]:
            leaves.append(leaf)
    code = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_IF_EQUAL, 1, 0, AUDIT_ARCH[arch]),
        _return(KILL_PROCESS),
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    if arch == "x86_64":  # x32, whose numbers have this bit
        code += [(_IF_AT_LEAST, 0, 1, 0x40000000), _return(KILL_PROCESS)]
    code += _tree(leaves)
    if len(code) > _MOST:
        raise ValueError(f"a seccomp filter of {len(code)} instructions, and the kernel takes {_MOST}")
    return b"".join(struct.pack("=HBBI", *step) for step in code)


def _return(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _tree(leaves: Sequence[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """A binary search for the last leaf whose first number is not above the number loaded."""
    if len(leaves) == 1:
        return leaves[0][1]
    middle = len(leaves) // 2
    below, above = _tree(leaves[:middle]), _tree(leaves[middle:])
    return [*_branch(_IF_AT_LEAST, leaves[middle][0], len(below)), *below, *above]


def _branch(code: int, value: int, over: int) -> list[Instruction]:
    """Go ``over`` as many instructions where the comparison holds: the jump itself reaches 255."""
    if over <= 255:
        return [(code, over, 0, value)]
    return [(code, 0, 1, value), (_JUMP, 0, 0, over)]


def _decide(rules: Sequence[Rule], default: int, swapped: bool) -> list[Instruction]:
    """The code that returns what the first fitting rule says."""
    steps: list[Instruction] = [_return(default)]
    for rule in reversed(rules):
        found: list[Instruction] = [_return(rule.action)]
        for condition in reversed(rule.when):
            found = _condition(condition, len(found), swapped) + found
        steps = found + steps if rule.when else found
    return steps


def _condition(arg: Arg, over: int, swapped: bool) -> list[Instruction]:
    """Fall through where ``arg`` holds, else go over the next ``over`` instructions."""
    if not 0 <= arg.at <= 5 or over > 200:
        raise ValueError(f"a seccomp rule with argument {arg.at} or too many conditions")
    low_at = _AT_ARGS + 8 * arg.at
    high_at = low_at + 4
    if swapped:
        low_at, high_at = high_at, low_at
    value, mask = arg.value & 0xFFFFFFFFFFFFFFFF, arg.mask & 0xFFFFFFFFFFFFFFFF
    high, low = value >> 32, value & 0xFFFFFFFF
    get_high: list[Instruction] = [(_LOAD, 0, 0, high_at)]
    get_low: list[Instruction] = [(_LOAD, 0, 0, low_at)]
    if arg.op == "&":
        get_high.append((_AND, 0, 0, mask >> 32))
        get_low.append((_AND, 0, 0, mask & 0xFFFFFFFF))
    skip = len(get_low) + 1  # the low half's code
    if arg.op in ("==", "&"):
        return [*get_high, (_IF_EQUAL, 0, skip + over, high), *get_low, (_IF_EQUAL, 0, over, low)]
    if arg.op == "!=":
        return [*get_high, (_IF_EQUAL, 0, skip, high), *get_low, (_IF_EQUAL, over, 0, low)]
    if arg.op in (">", ">="):
        # A greater high half decides; an equal one leaves it to the low half.
        last = _IF_GREATER if arg.op == ">" else _IF_AT_LEAST
        return [
            *get_high,
            (_IF_GREATER, skip + 1, 0, high),
            (_IF_EQUAL, 0, skip + over, high),
            *get_low,
            (last, 0, over, low),
        ]
    if arg.op in ("<", "<="):
        last = _IF_AT_LEAST if arg.op == "<" else _IF_GREATER
        return [
            *get_high,
            (_IF_GREATER, skip + 1 + over, 0, high),
            (_IF_EQUAL, 0, skip, high),
            *get_low,
            (last, over, 0, low),
        ]
    raise ValueError(f"a seccomp rule compares by {arg.op!r}")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes, *, all_threads: bool = False) -> None:
    """Put this thread, or with ``all_threads`` the whole process, under ``program`` for good; sets no_new_privs.

    Raises OSError: EINVAL where the kernel has no seccomp filters or doesn't take this one, ESRCH where a thread
    has another filter.
    """
    set_no_new_privs()
    arch = native()
    if not arch:
        raise OSError(38, f"no table of system calls for {os.uname().machine}")
    number = numbers(arch)["seccomp"]
    holder = _Program(len(program) // 8, program)
    flags = _FLAG_TSYNC if all_threads else 0
    result = libc.syscall(
        ctypes.c_long(number), ctypes.c_long(_MODE_FILTER), ctypes.c_long(flags), ctypes.byref(holder)
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")
    if result > 0:
        raise OSError(3, f"seccomp: thread {result} has another filter")


def allow(names: Iterable[str]) -> dict[str, Sequence[Rule]]:
    """Rules that allow each call of ``names``."""
    return {name: (Rule(ALLOW),) for name in names}
