"""Emulators that the kernel starts for programs of other architectures (binfmt_misc; Linux source,
Documentation/admin-guide/binfmt-misc.rst).

An entry says which first bytes of a file it is for. Only one with the flag F can be used in a container: the kernel
then opened the emulator when it was registered, and does not look for it in the container's root.
"""

from __future__ import annotations

import os
import struct

DIRECTORY = "/proc/sys/fs/binfmt_misc"
_HEADER = 20  # bytes of an ELF header up to e_machine

# GOARCH -> (EI_CLASS, EI_DATA, e_machine) of its programs (System V ABI; elf.h).
_ELF = {
    "386": (1, 1, 3),
    "amd64": (2, 1, 62),
    "arm": (1, 1, 40),
    "arm64": (2, 1, 183),
    "arm64be": (2, 2, 183),
    "loong64": (2, 1, 258),
    "mips64": (2, 2, 8),
    "mips64le": (2, 1, 8),
    "ppc64": (2, 2, 21),
    "ppc64le": (2, 1, 21),
    "riscv64": (2, 1, 243),
    "s390x": (2, 2, 22),
}


class Emulator:
    """``path`` of the interpreter; ``fixed``: it was opened when it was registered (flag F)."""

    __slots__ = ("fixed", "name", "path")

    def __init__(self, name: str, path: str, fixed: bool) -> None:
        self.name = name
        self.path = path
        self.fixed = fixed


def emulator(architecture: str, directory: str = DIRECTORY) -> Emulator | None:
    """What the kernel starts for programs of ``architecture`` (a GOARCH); of several, one that a container can use.
    None where nothing is registered, or binfmt_misc is turned off or not mounted."""
    headers = _headers(architecture)
    if not headers or _text(f"{directory}/status").strip() != "enabled":
        return None
    found = None
    for name in sorted(os.listdir(directory)):
        if name in ("status", "register"):
            continue
        entry = _Entry(_text(f"{directory}/{name}"))
        if entry.enabled and any(entry.matches(header) for header in headers):
            found = Emulator(name, entry.interpreter, "F" in entry.flags)
            if found.fixed:
                break
    return found


class _Entry:
    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        fields = dict(line.partition(" ")[::2] for line in lines[1:])
        self.enabled = lines[:1] == ["enabled"]
        self.interpreter = fields.get("interpreter", "")
        self.flags = fields.get("flags:", "")
        self._offset, self._magic, self._mask = 0, b"", b""
        try:
            self._offset = int(fields.get("offset", "0"))
            mask = bytes.fromhex(fields.get("mask", ""))
            magic = bytes.fromhex(fields.get("magic", ""))
        except ValueError:
            return
        if not mask or len(mask) == len(magic):
            self._magic, self._mask = magic, mask or b"\xff" * len(magic)

    def matches(self, header: bytes) -> bool:
        """Whether the entry is for files with this ELF header; one by file name extension never is."""
        end = self._offset + len(self._magic)
        if not self._magic or end > len(header):
            return False
        pairs = zip(header[self._offset : end], self._magic, self._mask, strict=True)
        return all((have ^ want) & mask == 0 for have, want, mask in pairs)


def _headers(architecture: str) -> list[bytes]:
    """The beginning of a program's file: ET_EXEC, and ET_DYN as position-independent ones are; some of which name the
    Linux ABI."""
    if architecture not in _ELF:
        return []
    width, order, machine = _ELF[architecture]
    return [
        b"\x7fELF"
        + bytes((width, order, 1, abi))
        + bytes(8)
        + struct.pack(">HH" if order == 2 else "<HH", kind, machine)
        for kind in (2, 3)
        for abi in (0, 3)
    ]


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""
