"""The smallest container program: a static ELF file that exits with 0 at once, for starts that measure the engine."""

from __future__ import annotations

import os
import struct

# exit(0) by machine: (ELF's e_machine, code).
_CODE = {
    "x86_64": (62, "b83c00000031ff0f05"),  # mov eax, 60; xor edi, edi; syscall
    "aarch64": (183, "a80b8052000080d2010000d4"),  # mov w8, #93; mov x0, #0; svc #0
}
_BASE = 0x400000
_HEADERS = 64 + 56


def program() -> bytes | None:
    """An executable of this machine (man elf); None for machines whose code is not known here."""
    found = _CODE.get(os.uname().machine)
    if found is None:
        return None
    machine, code = found[0], bytes.fromhex(found[1])
    size = _HEADERS + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, machine, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack(
        "<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000
    )  # PT_LOAD, read and execute
    return header + segment + code
