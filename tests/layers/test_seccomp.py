"""Seccomp filters: what the compiled program says is what the rules say, and the kernel agrees."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrun.kernel import seccomp
from pyrun.kernel.seccomp import ALLOW, KILL_PROCESS, Arg, Rule, compiled, errno_action, numbers
from pyrun.layers import confinement
from pyrun.testing import children

EPERM = errno_action(1)
ALL = sorted(seccomp.AUDIT_ARCH)


def verdict(
    program: bytes, arch: str, number: int, args: Sequence[int] = (), audit: int | None = None
) -> int:
    """The action that classic BPF takes for a call: linux/filter.h, read anew."""
    order = ">" if arch == "s390x" else "<"
    data = struct.pack(
        order + "IIQ6Q",
        number & 0xFFFFFFFF,
        seccomp.AUDIT_ARCH[arch] if audit is None else audit,
        0,
        *[*args, *[0] * (6 - len(args))],
    )
    at = register = 0
    for _ in range(5000):
        code, jump_true, jump_false, value = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        match code:
            case 0x06:
                return int(value)
            case 0x20:
                (register,) = struct.unpack_from(order + "I", data, value)
            case 0x54:
                register &= value
            case 0x05:
                at += value
            case 0x15 | 0x25 | 0x35:
                holds = {0x15: register == value, 0x25: register > value, 0x35: register >= value}[code]
                at += jump_true if holds else jump_false
            case _:
                raise AssertionError(f"instruction {code:#x}")
    raise AssertionError("the program does not end")


def holds(arg: Arg, args: Sequence[int]) -> bool:
    given = args[arg.at]
    match arg.op:
        case "==":
            return given == arg.value
        case "!=":
            return given != arg.value
        case "<":
            return given < arg.value
        case "<=":
            return given <= arg.value
        case ">":
            return given > arg.value
        case ">=":
            return given >= arg.value
    return given & arg.mask == arg.value


# Close to each other, to halves of 64 bits, and to the sign.
WORDS = st.sampled_from(
    [0, 1, 2, 5, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (5 << 32) + 2, (1 << 64) - 1]
)
ARGS = st.builds(
    Arg, st.integers(0, 5), st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "&"]), WORDS, WORDS
)
ACTIONS = st.sampled_from([ALLOW, EPERM, errno_action(38), KILL_PROCESS])
RULES = st.lists(st.builds(Rule, ACTIONS, st.lists(ARGS, max_size=3)), min_size=1, max_size=3)
CALLS = st.sampled_from(
    ["read", "write", "close", "lseek", "mmap", "ioctl", "openat", "clone", "execve", "openat2"]
)


@given(st.sampled_from(ALL), st.dictionaries(CALLS, RULES), CALLS, st.lists(WORDS, min_size=6, max_size=6))
@settings(max_examples=1500, deadline=None)
def test_the_first_rule_that_fits_decides(
    arch: str, rules: dict[str, list[Rule]], name: str, args: list[int]
) -> None:
    program = compiled(arch, rules, EPERM)
    number = numbers(arch).get(name)
    if number is None:
        return
    expected = next(
        (rule.action for rule in rules.get(name, []) if all(holds(arg, args) for arg in rule.when)), EPERM
    )
    assert verdict(program, arch, number, args) == expected


@pytest.mark.parametrize("arch", ALL)
def test_every_call_of_every_architecture_is_decided_as_its_name_says(arch: str) -> None:
    program = confinement.program(arch)
    allowed, deadly = set(confinement.ALLOWED), set(confinement.DEADLY)
    assert not allowed & deadly
    table = numbers(arch)
    for name, number in table.items():
        expected = ALLOW if name in allowed else KILL_PROCESS if name in deadly else EPERM
        if name == "mmap" and arch == "s390x":
            assert verdict(program, arch, number) == ALLOW, name
        elif name in ("mmap", "mmap2", "mprotect"):
            assert verdict(program, arch, number, [0, 0, 3]) == ALLOW, name
            assert verdict(program, arch, number, [0, 0, 5]) == EPERM, name
        elif name in ("fcntl", "fcntl64"):  # F_DUPFD, F_SETOWN
            assert verdict(program, arch, number, [0, 0]) == ALLOW, name
            assert verdict(program, arch, number, [0, 8]) == EPERM, name
        else:
            assert verdict(program, arch, number) == expected, name
    assert verdict(program, arch, max(table.values()) + 1) == errno_action(38)


@pytest.mark.parametrize("arch", ALL)
def test_what_makes_processes_reaches_others_or_mounts_is_never_allowed(arch: str) -> None:
    program = confinement.program(arch)
    for name in (
        "clone clone3 fork vfork execve execveat kill tkill tgkill ptrace socket connect mount umount2 setns unshare "
        "chroot pivot_root open_by_handle_at process_vm_writev bpf keyctl io_uring_setup prctl seccomp ioctl"
    ).split():
        number = numbers(arch).get(name)
        if number is not None:
            assert verdict(program, arch, number) != ALLOW, name


@pytest.mark.parametrize("arch", ALL)
def test_calls_of_another_architecture_end_the_process(arch: str) -> None:
    program = confinement.program(arch)
    for other in ALL:
        if seccomp.AUDIT_ARCH[other] != seccomp.AUDIT_ARCH[arch]:
            assert verdict(program, arch, 0, audit=seccomp.AUDIT_ARCH[other]) == KILL_PROCESS


def test_x32_calls_end_the_process() -> None:
    assert (
        verdict(confinement.program("x86_64"), "x86_64", 0x40000000 | numbers("x86_64")["read"])
        == KILL_PROCESS
    )


def test_a_long_program_jumps_over_more_than_255_instructions() -> None:
    rules = {
        name: [Rule(EPERM, [Arg(i % 6, ">", n << 32 | i) for i in range(4)]), Rule(errno_action(n % 100 + 1))]
        for n, name in enumerate(sorted(numbers("x86_64"))[:150])
    }
    program = compiled("x86_64", rules, ALLOW)
    assert len(program) // 8 > 2000
    for n, name in enumerate(rules):
        assert verdict(program, "x86_64", numbers("x86_64")[name]) == errno_action(n % 100 + 1)


def test_a_program_that_the_kernel_would_not_take_is_refused() -> None:
    rules = {
        name: [Rule(EPERM, [Arg(i, ">", n << 32 | i) for i in range(6)])]
        for n, name in enumerate(numbers("x86_64"))
    }
    with pytest.raises(ValueError, match="4096"):
        compiled("x86_64", rules, ALLOW)
    with pytest.raises(ValueError, match="argument 6"):
        compiled("x86_64", {"read": [Rule(EPERM, [Arg(6, "==", 0)])]}, ALLOW)
    with pytest.raises(ValueError, match="compares by"):
        compiled("x86_64", {"read": [Rule(EPERM, [Arg(0, "~", 0)])]}, ALLOW)


@pytest.mark.parametrize("op", ["==", "!=", "<", "<=", ">", ">=", "&"])
@pytest.mark.parametrize("value", [0, 3, 1 << 32, (1 << 32) + 3, (1 << 64) - 1])
def test_the_kernel_decides_as_the_model_does(op: str, value: int) -> None:
    arch = seccomp.native()
    assert arch, "the machine is not in the table"
    rule = Rule(errno_action(77), [Arg(1, op, value, 0xFFFFFFFF0000000F)])
    program = compiled(arch, {"getpriority": [rule]}, ALLOW)
    number = numbers(arch)["getpriority"]
    tried = [0, 1, 3, 4, (1 << 32) - 1, 1 << 32, (1 << 32) + 3, (1 << 63), (1 << 64) - 1]

    def inside() -> list[bool]:
        libc = ctypes.CDLL(None, use_errno=True)
        seccomp.install(program, all_threads=True)
        found = []
        for argument in tried:
            ctypes.set_errno(0)
            libc.syscall(ctypes.c_long(number), ctypes.c_long(0), ctypes.c_ulong(argument))
            found.append(ctypes.get_errno() == 77)
        return found

    expected = [verdict(program, arch, number, [0, argument]) != ALLOW for argument in tried]
    assert children.run(inside, seconds=60).result() == expected
    assert expected == [holds(rule.when[0], [0, argument]) for argument in tried]


def test_the_table_is_that_of_libseccomp() -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp2 is not installed")
    resolve = library.seccomp_syscall_resolve_name_arch
    for arch in ALL:
        if arch == "loongarch64":  # which its older versions don't know
            continue
        wrong = {
            name: (number, known)
            for name, number in numbers(arch).items()
            if (known := resolve(ctypes.c_uint32(seccomp.AUDIT_ARCH[arch]), name.encode())) >= 0
            and known != number
        }
        assert wrong == {}, arch


def test_a_filter_is_for_good_and_for_all_threads() -> None:
    def inside() -> list[str]:
        program = compiled(seccomp.native(), {"mkdir": [Rule(EPERM)], "mkdirat": [Rule(EPERM)]}, ALLOW)
        seccomp.install(program, all_threads=True)
        allow = compiled(seccomp.native(), {}, ALLOW)
        seccomp.install(allow, all_threads=True)
        with open("/proc/self/status") as file:
            status = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
        try:
            os.mkdir("/never-made-by-a-test")
        except PermissionError:
            return ["refused", status["NoNewPrivs"], status["Seccomp"]]
        return ["made"]

    assert children.run(inside, seconds=60).result() == ["refused", "1", "2"]
