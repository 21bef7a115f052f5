"""Import: the files of a tar become an image of one layer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...errors import LayerError, RegistryError, UsageError
from ..making import derived
from ..making.assemble import add_layer, store_image
from ..making.compress import compression_of
from ..platform import Platform, host
from ..printable import printable
from ..registry.origin import NETWORK_HINT, is_loopback, named
from ..registry.transport import Transport
from .spool import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..codec import Buffer
    from ..content import ContentStore
    from ..layerstore import LayerStore
    from ..local import ImageStore
    from ..record import Image
    from ..reference import Reference

_CHUNK = 256 << 10
_HEAD = 512


def import_tar(
    source: str | int,
    *,
    settings: Mapping[str, Any],
    reference: Reference | None,
    message: str,
    platform: str | None,
    content: ContentStore,
    images: ImageStore,
    layers: LayerStore,
) -> Image:
    """Make an image of the tar ``source``: a path, a descriptor, or a URL.

    settings  the image's "config" object
    message   of the image and its history; "": where the files came from

    The image's time is the present, or SOURCE_DATE_EPOCH (reproducible-builds.org). Raises `PyrunError` for what can't
    be read, `RegistryError` for what can't be downloaded, `LayerError` for what is no tar. The caller is
    `pyrun.images.making.assemble.assembling`.
    """
    target = _platform(platform)
    created = _now()
    with _opened(source) as chunks:
        layer = add_layer(content, _tar(chunks))
    told = "-" if isinstance(source, int) else source
    step = {"created": created, "comment": message or f"Imported from {printable(told, 1000)}"}
    config = derived.config(None, settings=settings, diff_ids=[layer.diff_id], step=step, platform=target)
    names = [reference] if reference else []
    return store_image(config, [layer], content=content, images=images, layers=layers, names=names)


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _platform(text: str | None) -> Platform:
    """That of ``text``; of the host without its variant, for the files may run on less."""
    if text or os.environ.get("DOCKER_DEFAULT_PLATFORM"):
        from ..platform import wanted

        return wanted(text)
    own = host()
    return own if own.architecture.startswith("arm") else Platform(own.os, own.architecture)


def _now() -> str:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if text and not (text.isascii() and text.isdecimal()):
        raise UsageError(f"SOURCE_DATE_EPOCH={text}: not a number of seconds")
    try:
        return datetime.fromtimestamp(int(text or time.time()), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH={text}: out of range") from None


def _tar(chunks: Iterator[Buffer]) -> Generator[Buffer, None, None]:
    """``chunks``. Raises `LayerError` where they begin neither as a tar nor as something compressed: a mistake that is
    found before all of it was stored."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= _HEAD:
            break
    if compression_of(head + bytes(8)) == "none" and not _begins_as_tar(head):
        raise LayerError(
            "what is to be imported is no tar archive" if head else "what is to be imported is empty",
            hint="A tar of a root file system is wanted, perhaps compressed, as `pyrun export` writes it.",
        )
    yield head
    yield from chunks


def _begins_as_tar(head: bytes) -> bool:
    if len(head) < _HEAD:
        return False
    block = head[:_HEAD]
    if not any(block):
        return True  # an empty one
    digits = block[148:156].strip(b" \0")
    try:
        return int(digits, 8) == sum(block) - sum(block[148:156]) + 8 * 32 or block[257:262] == b"ustar"
    except ValueError:
        return False


@contextmanager
def _opened(source: str | int) -> Iterator[Iterator[Buffer]]:
    if isinstance(source, str) and is_url(source):
        with _downloaded(source) as chunks:
            yield chunks
        return
    what = source if isinstance(source, str) else "the input"
    fd = -1
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC) if isinstance(source, str) else os.dup(source)
        yield _read(fd, what)
    except OSError as error:
        if fd >= 0:
            raise
        raise unreadable(what, error) from error
    finally:
        if fd >= 0:
            os.close(fd)


def _read(fd: int, what: str) -> Iterator[Buffer]:
    while True:
        try:
            data = os.read(fd, _CHUNK)
        except OSError as error:
            raise unreadable(what, error) from error
        if not data:
            return
        yield data


@contextmanager
def _downloaded(url: str) -> Iterator[Iterator[Buffer]]:
    """The body behind a URL, under the rules of `pyrun.images.registry.transport`: https, or http on loopback."""
    try:
        parts = urlsplit(url)
        place = parts.netloc if parts.port != 0 else ""
    except ValueError:
        place = ""
    if not place or not parts.hostname:
        raise UsageError(f"{printable(url, 300)} is not a URL")
    if "@" in place:
        raise UsageError(
            "the URL to import from holds a user name or password",
            hint="It would end up in the image's history. Download the file, and import that.",
        )
    if parts.scheme == "http" and not is_loopback(place):
        raise UsageError(
            f"{printable(url, 300)} is not https: what comes from there could be anybody's",
            hint="Download the file and check it, then import that.",
        )
    transport = Transport(place, insecure=False, tls_only=parts.scheme == "https")
    try:
        response = transport.request("GET", parts._replace(fragment="").geturl(), {"Accept": "*/*"})
    except RegistryError as error:
        # It need not be a registry, and registries.conf has no say.
        hint = "Check the URL, and the network." if error.hint == NETWORK_HINT else error.hint
        raise RegistryError(error.message.removeprefix("registry "), hint=hint) from error
    try:
        if response.status != 200:
            raise RegistryError(
                f"{named(response.origin)} answers {response.status} for {printable(url, 300)}",
                hint="Check the URL.",
            )
        length = response.header("Content-Length")
        expected = int(length) if length and length.isascii() and length.isdecimal() else None
        yield _body(response.readinto, expected, named(response.origin))
    finally:
        response.close()
        transport.close()


def _body(read: Callable[[memoryview], int], expected: int | None, where: str) -> Iterator[Buffer]:
    buffer = memoryview(bytearray(_CHUNK))
    seen = 0
    while count := read(buffer):
        seen += count
        yield buffer[:count]
    if expected is not None and seen != expected:
        raise RegistryError(f"{where} broke off after {seen} of {expected} bytes", hint="Import it again.")
