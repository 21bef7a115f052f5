"""Layers in the form for aufs, read by aufs's own rules: they mean what the same layers applied mean.

No kernel here may have aufs, so its rules are written down once more, from the look-up in fs/aufs/dentry.c: in each
branch a whiteout is looked for before the name; an opaque directory ends the search below it; and a branch that
has something of another type there is passed over.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from rawtar import directory, extract, file, hardlink, symlink, tree
from test_layers_random import LAYERS, LINK_THEN_DELETE, OPAQUE_BELOW_WHITEOUT, listed

from pyrun.errors import LayerError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0: chown")


def union(branches: list[Path]) -> dict[bytes, Path]:
    """What aufs shows of the branches, top to bottom: root-relative name → the file or topmost directory."""
    found: dict[bytes, Path] = {}
    todo = [(b"", branches)]
    while todo:
        where, parents = todo.pop()
        names = {os.fsencode(p.name) for parent in parents for p in parent.iterdir()}
        for name in names:
            if name.startswith(b".wh."):
                continue
            shown: list[Path] = []
            for parent in parents:
                if os.path.lexists(parent / os.fsdecode(b".wh." + name)):
                    break
                path = parent / os.fsdecode(name)
                if not os.path.lexists(path):
                    continue
                if shown and stat.S_IFMT(path.lstat().st_mode) != stat.S_IFMT(shown[0].lstat().st_mode):
                    continue
                shown.append(path)
                if not stat.S_ISDIR(path.lstat().st_mode) or (path / ".wh..wh..opq").exists():
                    break
            if shown:
                full = where + b"/" + name if where else name
                found[full] = shown[0]
                if stat.S_ISDIR(shown[0].lstat().st_mode):
                    todo.append((full, shown))
    return found


def check_layers(layers: list[list[tuple[str, bytes, object]]]) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        root = Path(name)
        below: set[bytes] = set()
        ever: set[bytes] = set()
        branches: list[Path] = []
        for i, layer in enumerate(layers):
            # What aufs itself would write, and layers made on it have: a directory hides whatever else had its
            # name in another layer.
            directories = {path for kind, path, _ in layer if kind in ("dir", "opaque")}
            for _, path, _ in layer:
                directories |= {path[:at] for at, byte in enumerate(path) if byte == 0x2F}
            made_over = [("whiteout", path, None) for path in sorted(directories & ever)]
            members = listed([*made_over, *layer], below)
            ever |= below
            done = extract(root / f"l{i}", *members, whiteouts="aufs")
            extract(root / "applied", *members, whiteouts="apply")
            branches.insert(0, root / f"l{i}")
            if done.opaque_root:
                branches = branches[:1]
        shown = union(branches)
        applied = tree(root / "applied", times=False)
        applied.pop(b"", None)
        assert set(shown) == set(applied)
        for path, what in applied.items():
            found = shown[path].lstat()
            assert stat.S_IFMT(found.st_mode) == what[0], path
            if stat.S_ISREG(found.st_mode):
                assert shown[path].read_bytes() == what[4], path


@given(LAYERS)
@example(LINK_THEN_DELETE)
@example(OPAQUE_BELOW_WHITEOUT)
@example([[("file", b"a/b", 1)], [("whiteout", b"a", None), ("file", b"a/c", 2)]])
@example([[("file", b"a/b", 1)], [("dir", b"a", 0o700), ("whiteout", b"a", None)]])
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_branches_mean_what_applied_layers_mean(layers: list[list[tuple[str, bytes, object]]]) -> None:
    check_layers(layers)


@pytest.mark.long
@pytest.mark.timeout(900)
@given(LAYERS)
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
def test_branches_mean_what_applied_layers_mean_in_many_rounds(
    layers: list[list[tuple[str, bytes, object]]],
) -> None:
    check_layers(layers)


def test_whiteouts_are_files_with_the_tars_own_names(tmp_path: Path) -> None:
    extract(
        tmp_path / "root",
        directory(b"d", mode=0o1777),
        file(b"d/.wh..wh..opq"),
        file(b"d/.wh.gone"),
        file(b".wh.x", b"content", mode=0o777),
        file(b".wh..wh.aufs"),
        file(b".wh..wh.plnk/17", b"x"),
        whiteouts="aufs",
    )
    assert set(os.listdir(tmp_path / "root")) == {"d", ".wh.x"}
    assert set(os.listdir(tmp_path / "root/d")) == {".wh..wh..opq", ".wh.gone"}
    for name in (".wh.x", "d/.wh.gone", "d/.wh..wh..opq"):
        st = (tmp_path / "root" / name).lstat()
        assert (oct(st.st_mode), st.st_size, st.st_uid) == ("0o100444", 0, 0)
    assert stat.S_IMODE((tmp_path / "root/d").lstat().st_mode) == 0o1777


@pytest.mark.parametrize("order", [1, -1], ids=["deleted-then-added", "added-then-deleted"])
def test_a_name_that_the_layer_adds_is_not_hidden_by_its_own_whiteout(tmp_path: Path, order: int) -> None:
    for kind, new in (
        ("file", file(b"n", b"x")),
        ("dir", directory(b"n", mtime=5)),
        ("link", symlink(b"n", b"t")),
    ):
        extract(tmp_path / kind, *[file(b".wh.n"), new][::order], whiteouts="aufs")
        assert os.listdir(tmp_path / kind) == ["n"]
    assert os.listdir(tmp_path / "dir/n") == [".wh..wh..opq"]
    assert (tmp_path / "dir/n").stat().st_mtime == 5


def test_a_directory_in_place_of_a_file_of_the_layer_is_opaque(tmp_path: Path) -> None:
    extract(tmp_path / "root", file(b"n", b"x"), directory(b"n"), file(b"n/new"), whiteouts="aufs")
    assert set(os.listdir(tmp_path / "root/n")) == {".wh..wh..opq", "new"}


def test_an_opaque_root_is_reported_for_aufs_ignores_it_as_overlayfs_does(tmp_path: Path) -> None:
    assert extract(tmp_path / "root", file(b"new"), file(b".wh..wh..opq"), whiteouts="aufs").opaque_root
    assert os.listdir(tmp_path / "root") == ["new"]


def test_a_hard_link_to_what_the_layer_deletes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="which the layer lacks"):
        extract(tmp_path / "root", file(b".wh.a"), hardlink(b"b", b"a"), whiteouts="aufs")


def test_a_whiteout_through_a_symbolic_link_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    extract(
        tmp_path / "root",
        symlink(b"out", b"../outside"),
        file(b"out/.wh.secret"),
        file(b"out/.wh..wh..opq"),
        whiteouts="aufs",
    )
    assert os.listdir(tmp_path / "outside") == []
    assert set(os.listdir(tmp_path / "root/outside")) == {".wh.secret", ".wh..wh..opq"}
