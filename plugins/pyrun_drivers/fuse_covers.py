"""Hidden directories of lower layers, which fuse-overlayfs forgets to hide.

Version 1.10 looks a name up in every layer below a directory that hides them (an opaque one, or one that stands
where a layer between deleted another) until somebody has listed that directory: an open finds a file that is
deleted. So before a server starts, an empty directory is mounted over each directory of a lower layer that must not
be seen, in the server's own mount namespace.
"""

from __future__ import annotations

from .fuse_notes import Tree, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def covers(layers: Sequence[str], upper: str | None) -> list[tuple[int, bytes]]:
    """(index of a layer, name of a directory in it) of all that ``layers`` (layer directories, bottom to top) and
    the directory ``upper`` hide; the outer before the inner of a layer."""
    trees = [Tree(f"{layer}/fs") for layer in layers]
    try:
        found = set(_by_layers(layers, trees))
        if upper is not None:
            with Tree(upper, upper=True) as top:
                found.update(_by_upper(top, trees))
        return sorted(found)
    finally:
        for tree in trees:
            tree.close()


def _by_layers(layers: Sequence[str], trees: Sequence[Tree]) -> Iterator[tuple[int, bytes]]:
    for at, layer in enumerate(layers):
        if at == 0:
            continue
        notes = read(layer)
        for name in notes.opaque:
            yield from _below(trees[:at], name)
        for name in notes.whiteouts:
            # Nothing leads past a whiteout, unless a higher layer has a directory there again.
            if any(tree.is_directory(name) for tree in trees[at + 1 :]):
                yield from _below(trees[:at], name)


def _by_upper(upper: Tree, trees: Sequence[Tree]) -> Iterator[tuple[int, bytes]]:
    """An upper directory has no notes: it is walked, as far as layers have the same directories."""
    todo: list[tuple[bytes, Sequence[int]]] = [(b"", range(len(trees)))]
    while todo:
        where, shared = todo.pop()
        for name in upper.names(where):
            if not upper.is_directory(name):
                continue
            both = [at for at in shared if trees[at].is_directory(name)]
            if both and upper.opaque(name):
                yield from ((at, name) for at in both)
            elif both:
                todo.append((name, both))


def deleted(upper: str, below: int) -> list[bytes]:
    """Names of the directory fd ``below``, a mount of the layers alone, that opaque directories of ``upper`` hide,
    without what lies below such names."""
    found, todo = [], [b""]
    with Tree(upper, upper=True) as top, Tree(f"/proc/self/fd/{below}/.") as layers:
        while todo:
            where = todo.pop()
            if where and top.opaque(where):
                found += [name for name in layers.names(where) if top.lstat(name) is None]
            todo += [n for n in top.names(where) if top.is_directory(n) and layers.is_directory(n)]
    return found


def _below(trees: Sequence[Tree], name: bytes) -> Iterator[tuple[int, bytes]]:
    return ((at, name) for at, tree in enumerate(trees) if tree.is_directory(name))
