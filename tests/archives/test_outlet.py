"""Where root writes a file for others to see, others have no say in what becomes of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyrun.errors import PyrunError, UsageError
from pyrun.images.archives.outlet import directory_at, file_at

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0: files of another user are made")

OTHER = 61234  # nobody's


@pytest.fixture
def everybodys(tmp_path: Path) -> Path:
    """As /tmp."""
    path = tmp_path / "everybodys"
    path.mkdir()
    path.chmod(0o1777)
    return path


def _write(path: Path | str, data: bytes = b"data") -> None:
    with file_at(str(path)) as fd:
        os.write(fd, data)


def test_a_link_of_somebody_elses_is_not_followed(tmp_path: Path, everybodys: Path) -> None:
    victim = tmp_path / "shadow"
    victim.write_text("root:x")
    link = everybodys / "image.tar"
    link.symlink_to(victim)
    os.lchown(link, OTHER, OTHER)
    with pytest.raises(PyrunError, match="symbolic link of another user"):
        _write(link)
    with pytest.raises(PyrunError, match="symbolic link of another user"), directory_at(str(link)):
        pass
    assert victim.read_text() == "root:x"
    assert os.listdir(everybodys) == ["image.tar"]


def test_a_link_of_ones_own_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("before")
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to("there/file")
    _write(tmp_path / "first")
    assert (tmp_path / "there/file").read_text() == "data"
    assert (tmp_path / "first").is_symlink()
    assert sorted(os.listdir(tmp_path / "there")) == ["file"]


def test_links_in_a_circle_are_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(PyrunError, match="Too many levels"):
        _write(tmp_path / "a")


def test_the_mode_of_somebody_elses_file_is_not_taken_over(everybodys: Path) -> None:
    there = everybodys / "image.tar"
    there.write_text("")
    os.chown(there, OTHER, OTHER)
    there.chmod(0o6777)
    _write(there)
    found = there.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o644, 0)


def test_the_mode_of_ones_own_is_but_for_setuid(tmp_path: Path) -> None:
    there = tmp_path / "image.tar"
    there.write_text("")
    there.chmod(0o4600)
    _write(there)
    assert stat.S_IMODE(there.stat().st_mode) == 0o600


def test_a_directory_that_is_exchanged_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    home = tmp_path / "home"
    home.mkdir()
    with directory_at(str(home / "out")) as outlet:
        (working,) = os.listdir(home)
        # What the directory's owner can do.
        (home / working).rename(home / "moved")
        (home / working).symlink_to(private)
        outlet.directory("blobs/sha256")
        outlet.file("blobs/sha256/a", 3, [b"abc"])
    assert os.listdir(private) == []
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert (home / "moved/blobs/sha256/a").read_bytes() == b"abc"


def test_a_parent_that_is_exchanged_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    with file_at(str(home / "out")) as fd:
        home.rename(tmp_path / "moved")
        home.symlink_to(private)
        os.write(fd, b"data")
    assert os.listdir(private) == []
    assert (tmp_path / "moved/out").read_bytes() == b"data"


def test_directories_are_named_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "../other/", "plain"):
        with directory_at(name) as outlet:
            outlet.file("a", 1, [b"a"])
        monkeypatch.chdir(tmp_path / "here")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("a")) == [
        "here/a",
        "here/plain/a",
        "other/a",
    ]
    with pytest.raises(UsageError, match="is there already"), directory_at(".."):
        pass
    with pytest.raises(UsageError, match="is there already"), directory_at("a"):
        pass
