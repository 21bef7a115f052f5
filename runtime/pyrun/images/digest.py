"""Content digests (OCI image spec, descriptor.md#digests). On the path of `run`: imports nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = frozenset("0123456789abcdef")


def is_hex(text: str) -> bool:
    """Lowercase hexadecimal digits only, at least one."""
    return bool(text) and _HEX.issuperset(text)


def is_digest(text: str) -> bool:
    """``algorithm:hex`` of a registered algorithm, with exactly as many digits as it yields.

    Nothing that passes can hold a path separator, so such a digest is safe as a file name.
    """
    algorithm, _, digits = text.partition(":")
    return HEX_LENGTH.get(algorithm) == len(digits) and is_hex(digits)


def hasher(digest: str) -> Any:
    """A fresh hashlib object of ``digest``'s algorithm; `is_digest` must hold."""
    import hashlib

    return hashlib.new(digest.partition(":")[0], usedforsecurity=True)


def digest_like(digest: str, data: bytes) -> str:
    """The digest of ``data`` by the algorithm that ``digest`` uses."""
    state = hasher(digest)
    state.update(data)
    return f"{digest.partition(':')[0]}:{state.hexdigest()}"


def sha256(data: bytes) -> str:
    return digest_like("sha256:", data)


def short(digest: str) -> str:
    """The first 12 hex digits, as docker shows a layer or an image."""
    return digest.rpartition(":")[2][:12]
