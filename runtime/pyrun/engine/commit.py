"""A container's files as a tar (``pyrun export``), and as an image (``pyrun commit``).

A commit is one layer on top of those of the container's image: what `Driver.changes` tells, with the container's own
ids, packed here while a thread compresses and stores it. The same container gives the same image, byte for byte:
nothing of the moment goes into it, neither the time nor the container's name, ID or host name. Its time is the one that
the caller or SOURCE_DATE_EPOCH gives (reproducible-builds.org), else that of the newest change.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..containers import view as views
from ..containers.freeze import Frozen
from ..containers.settings import settings
from ..errors import InvalidReference, NotFound, StorageError, UsageError
from ..images.archives.outlet import PRIVATE, file_at, words
from ..images.digest import short
from ..images.making import derived
from ..images.making.assemble import add_layer, assembling, store_image
from ..images.making.changes import changed
from ..images.platform import host
from ..images.reference import Reference
from ..kernel.files import write_all
from ..layers.pack import pack
from ..storage import failpoints
from ..storage.changes import added
from ..storage.contract import Change
from .feed import Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..containers.record import Container
    from ..containers.view import View
    from ..images.content import ContentStore
    from ..images.record import Image, ImageLayer
    from .archives import ArchiveMethods


_BUFFER = 1 << 20


class _Out:
    """A descriptor, buffered; what can't be written is told in words that name it."""

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self._what = what
        self._gathered = bytearray()

    def write(self, data: bytes) -> None:
        self._gathered += data
        if len(self._gathered) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        with words(self._what):
            write_all(self._fd, self._gathered)
        self._gathered.clear()


def export(engine: ArchiveMethods, name: str, output: str | int) -> int:
    """`Engine.export`."""
    container = engine.container(name)
    store = engine._store_of(container)
    with views.opened(store, engine._containers(), container.id) as view, ExitStack() as stack:
        if isinstance(output, int):
            out = _Out(output, "the output")
        else:
            # What the container keeps from its users, as its /etc/shadow, is in it.
            out = _Out(stack.enter_context(file_at(output, mode=PRIVATE)), output)
        size = pack(_everything(view.root), view.root, out, owner=view.owner, plain=True)
        out.flush()
        view.check()
        return size


def _everything(root: int) -> Iterator[Change]:
    """All that the directory has, and its own attributes."""
    yield Change(b"", "modify")
    yield from added(root, b"")


@dataclass(frozen=True, slots=True)
class Request:
    """What `Engine.commit` was asked; see there."""

    author: str
    message: str
    changes: Sequence[str]
    pause: bool
    squash: bool
    format: str
    timestamp: int | None
    say: Callable[[str], None]


def commit(engine: ArchiveMethods, name: str, target: str | None, request: Request) -> Image:
    """`Engine.commit`."""
    reference = _target(target)
    if request.format not in derived.FORMATS:
        raise UsageError(
            f"there is no image format {request.format!r}", hint=f"One of {', '.join(derived.FORMATS)}."
        )
    at = _given_time(request.timestamp)
    container = engine.container(name)
    store = engine._store_of(container)
    images = engine._images()
    content = images.content
    with assembling(engine.root):
        base = _base(images.records(), container, content, squash=request.squash)
        found = changed(settings(base.config, container), request.changes)
        with views.opened(store, engine._containers(), container.id) as view:
            layer, newest = _layer(view, content, request)
            view.check()
            container = view.container
        failpoints.reach("commit.packed")
        stack = [*([] if request.squash else base.layers), *([layer] if layer else [])]
        created = rfc3339(at if at is not None else newest or container.created)
        step = {
            "created": created,
            "created_by": " ".join(command_of(settings(base.config, container))),
            "author": request.author,
            "comment": request.message,
            "empty_layer": layer is None,
        }
        config = derived.config(
            base.document,
            settings=found,
            diff_ids=[layer.diff_id for layer in stack],
            step={key: value for key, value in step.items() if value or key.startswith("created")},
            flat=request.squash,
            platform=host(),
        )
        manifest = derived.manifest(
            None if request.squash else base.manifest, config, stack, format=request.format
        )
        request.say("Storing the image")
        image = store_image(
            config,
            stack,
            content=content,
            images=images,
            layers=engine._open().layers,
            names=[reference] if reference else [],
            manifest=manifest,
        )
        failpoints.reach("commit.stored")
        return image


def _target(text: str | None) -> Reference | None:
    """The name to give, if any. Raises `InvalidReference`."""
    if not text:
        return None
    reference = Reference.parse(text)
    if reference.digest:
        raise InvalidReference(
            f"{text!r} can't be the name of a new image: it has a digest", hint='For example "app:1.0".'
        )
    return reference


def _given_time(seconds: int | None) -> float | None:
    """The image's time as the caller has it, else the environment. Raises `UsageError`."""
    text, origin = (str(seconds), "--timestamp") if seconds is not None else ("", "SOURCE_DATE_EPOCH")
    text = text or os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or int(text) > 253402300799:
        raise UsageError(
            f"{origin}: {text!r} is no time",
            hint="Give seconds since 1970-01-01 00:00 UTC, as date +%s does.",
        )
    return float(text)


@dataclass(frozen=True, slots=True)
class _Base:
    """The image that a container was made from: its "config" object, its layers, and the bytes of its config and
    manifest (None: there is no such image any more)."""

    config: Mapping[str, Any]
    layers: Sequence[ImageLayer]
    document: bytes | None
    manifest: bytes | None


def _base(images: Sequence[Image], container: Container, content: ContentStore, *, squash: bool) -> _Base:
    image = next((image for image in images if image.id == container.image_id), None)
    if image is None:
        if squash:
            return _Base({}, [], None, None)
        raise NotFound(
            f"the image of the container {container.name} is not in the store any more: {container.image}",
            hint="Pull it again, or make an image that needs no other: --squash.",
        )
    if not squash:
        missing = next((layer.digest for layer in image.layers if not content.has(layer.digest)), None)
        if missing:
            raise StorageError(
                f"the blob {short(missing)} of {container.image} is not in the store",
                hint="Pull the image again, or make one that needs no other: --squash.",
            )
    return _Base(image.config, image.layers, content.read(image.id), content.read(image.manifest))


def _layer(view: View, content: ContentStore, request: Request) -> tuple[ImageLayer | None, float]:
    """The layer of what the container changed, stored; None where that is nothing. And the time of its newest change,
    in seconds, among those that are not in the future; 0.0 for none."""
    container = view.container
    # What a clock that was wrong, or touch(1), wrote is no time for an image.
    ended = int(container.finished * 1e9) if view.pidfd < 0 else 0
    newest = entries = 0

    def seen(name: bytes, mtime_ns: int) -> None:
        nonlocal newest, entries
        entries += 1
        if newest < mtime_ns <= (ended or time.time_ns()):
            newest = mtime_ns

    class Out:
        @staticmethod
        def write(data: bytes) -> None:
            if entries:  # the end of a tar without entries is no layer
                feed.write(data)

    paused = request.pause and view.pidfd >= 0
    frozen = Frozen(container.pid, view.pidfd, container.name) if paused else nullcontext()
    with Feed(lambda chunks: add_layer(content, chunks)) as feed:
        with frozen:
            if paused:
                request.say(f"Paused {container.name}")
            failpoints.reach("commit.begin")
            changes = view.own(_everything(view.root)) if request.squash else view.changes()
            request.say(f"Packing {'all files' if request.squash else 'the changes'} of {container.name}")
            pack(changes, view.root, Out(), owner=view.owner, each=_at_entry, seen=seen)
            failpoints.reach("commit.end")
        return (feed.result() if entries else None), newest / 1e9


def _at_entry() -> None:
    failpoints.reach("commit.entry")


def command_of(config: Mapping[str, Any]) -> list[str]:
    """The words of a container's command for the history: CMD, as docker has it; ENTRYPOINT where there is none."""
    return list(config.get("Cmd") or config.get("Entrypoint") or [])


def rfc3339(seconds: float) -> str:
    """As image configs have times: UTC, to the second where that is exact, else to the microsecond."""
    moment = datetime.fromtimestamp(seconds, UTC)
    form = "%Y-%m-%dT%H:%M:%S.%fZ" if moment.microsecond else "%Y-%m-%dT%H:%M:%SZ"
    return moment.strftime(form)
