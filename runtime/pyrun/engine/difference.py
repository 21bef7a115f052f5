"""What a container or an image has that what it was made from has not: ``pyrun diff``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from ..containers import view as views
from ..errors import NotFound, Unsupported
from ..images.record import Image
from ..storage.changes import compare
from ..storage.locks import SharedLock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..storage.contract import Change
    from ..storage.store import Store
    from .archives import ArchiveMethods

_KINDS = {"add": "A", "modify": "C", "delete": "D"}


class Difference(NamedTuple):
    """``kind``: "A" added, "C" changed, "D" deleted, with all below it. ``path`` is absolute; bytes that are no UTF-8
    are in it as `os.fsdecode` has them."""

    kind: str
    path: str


def differences(engine: ArchiveMethods, name: str, base: str | None) -> list[Difference]:
    """`Engine.diff`."""
    try:
        container = engine.container(name)
    except NotFound:
        pass
    else:
        store = engine._store_of(container)
        with views.opened(store, engine._containers(), container.id) as view:
            if base is None:
                found = listed(view.changes())
            else:
                with SharedLock(f"{engine.root}/locks/store"):
                    layers = engine._layers(store, engine._local(base))
                    with views.mounted(store, layers, view.idmap) as below:
                        found = listed(view.own(compare(below, view.root)))
            view.check()
            return found
    store = engine._open()
    with SharedLock(f"{engine.root}/locks/store"):
        try:
            image = engine._local(name)
        except NotFound:
            raise NotFound(
                f"no such container or image: {name}", hint="pyrun ps -a and pyrun images list them."
            ) from None
        return _between(
            engine, store, image, engine._local(base) if base is not None else _without_top(image)
        )


def _between(engine: ArchiveMethods, store: Store, image: Image, base: Image) -> list[Difference]:
    if image.platform.partition("/")[0] != "linux":
        raise Unsupported(f"the layers of an image for {image.platform} are not unpacked here")
    with ExitStack() as stack:
        below, above = (
            stack.enter_context(views.mounted(store, engine._layers(store, which))) for which in (base, image)
        )
        return listed(compare(below, above))


def _without_top(image: Image) -> Image:
    """The image without its topmost layer."""
    record = image.to_json()
    record["layers"] = record["layers"][:-1]
    return Image.from_json(record)


def listed(changes: Iterable[Change]) -> list[Difference]:
    """``changes`` as docker lists them: sorted by path, with the directories in which something changed, but for the
    root."""
    found = {b"/" + change.path: _KINDS[change.kind] for change in changes}
    for path in list(found):
        while (path := path.rpartition(b"/")[0]) and path not in found:
            found[path] = "C"
    found.pop(b"/", None)
    return [Difference(kind, os.fsdecode(path)) for path, kind in sorted(found.items())]
