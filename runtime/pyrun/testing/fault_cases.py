"""Cases of section E: isolation, and faults of every kind. `pyrun.testing.chaos` goes on where these end."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO, ClassVar, cast

import pytest

from ..errors import ConfigError, Conflict, DigestMismatch, PyrunError, RegistryError, StorageError
from ..kernel import userns
from ..kernel.process import CLONE_NEWUSER, setns
from ..storage import failpoints, layers, records
from ..storage.contract import Driver
from ..storage.events import StorageEvent
from ..storage.leases import Lease
from ..storage.store import VERSION, open_store
from ..storage.tarblob import TarBlob
from . import disks
from .children import Child, gate, gather, killed_at, private_mounts, run
from .fixtures import descriptors
from .rig import Rig, Unusable
from .soundness import (
    CONTENT,
    LOWER,
    UPPER,
    assert_shown,
    assert_sound,
    image,
    life,
    mounts,
    nothing_left,
    shown,
    write,
)
from .tars import Dir, File, Symlink, tar
from .trees import snapshot

MiB = 1 << 20
_OCCURRENCES = 40  # of one failpoint in one container's life, at most
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "left (beside a reserve)", "no space")


class FaultCases:
    """Cases that need the fixture ``rig``.

    file_systems  kinds of small file systems to try, for the cases that fill one; the first on which the
                  driver works is taken
    """

    driver: ClassVar[type[Driver]]
    options: ClassVar[Mapping[str, Any]]
    long: ClassVar[bool]
    file_systems: ClassVar[Sequence[str]] = disks.KINDS

    # --- isolation

    def test_62_two_containers_never_see_each_other(self, rig: Rig) -> None:
        stack = image(rig)
        below = shown(rig, stack)
        with rig.rootfs(stack) as one, rig.rootfs(stack) as two, rig.view(stack) as view:
            for number, root in enumerate((one, two)):
                with open(f"{root.path}/usr/bin/tool", "r+b") as file:
                    file.write(b"container %d" % number)
                os.mkdir(f"{root.path}/dir{number}")
                os.chmod(f"{root.path}/tmp", 0o700 + number)
            shutil.rmtree(f"{one.path}/var")
            os.rename(f"{two.path}/etc/motd", f"{two.path}/etc/news")
            for number, (root, other) in enumerate(((one, two), (two, one))):
                with open(f"{root.path}/usr/bin/tool", "rb") as file:
                    assert file.read() == b"container %d" % number + CONTENT[11:]
                assert os.path.isdir(f"{root.path}/dir{number}")
                assert not os.path.lexists(f"{other.path}/dir{number}")
                assert os.stat(f"{root.path}/tmp").st_mode & 0o7777 == 0o700 + number
            assert os.listdir(f"{two.path}/var") == ["new"]
            assert os.path.exists(f"{one.path}/etc/motd")
            with open(f"{view.path}/usr/bin/tool", "rb") as file:
                assert file.read() == CONTENT
        assert_shown(rig, stack, below)

    def test_63_fifty_containers_at_once_leave_no_descriptor_and_no_mount(self, rig: Rig) -> None:
        stack = image(rig)
        write(rig, stack, leaving := rig.prepare(stack))  # whatever is opened once a process is open now
        rig.discard(leaving)

        def work(number: int) -> list[str]:
            before = descriptors()
            rw = rig.prepare(stack)
            start.wait()
            with rig.rootfs(stack, rw) as root:
                with open(f"{root.path}/etc/motd") as file:
                    assert file.read() == "hello\n"
                with open(f"{root.path}/etc/own{number}", "w") as file:
                    file.write(str(number))
                own = [name for name in os.listdir(f"{root.path}/etc") if name.startswith("own")]
                assert own == [f"own{number}"], f"container {number} sees {own}"
                assert mounts(rig.root) == mounted
            rig.discard(rw)
            return sorted(set(descriptors().values()) - set(before.values()))

        mounted = mounts(rig.root)
        with nothing_left(rig.root), gate() as start:
            children = [Child(partial(work, number)) for number in range(50)]
            start.open()
            outcomes = gather(children)
        for outcome in outcomes:
            assert outcome.result() == []
        assert os.listdir(f"{rig.root}/containers") == []
        assert_sound(rig)

    def test_63b_fifty_containers_one_after_the_other_in_one_process(self, rig: Rig) -> None:
        stack = image(rig)

        def work() -> list[str]:
            before: dict[int, str] = {}
            for number in range(50):
                rw = rig.prepare(stack)
                with rig.rootfs(stack, rw) as root, open(f"{root.path}/made", "w") as file:
                    file.write("x")
                rig.discard(rw)
                if number == 0:
                    before = descriptors()
            return sorted(set(descriptors().values()) - set(before.values()))

        with nothing_left(rig.root):
            assert run(work).result() == []

    def test_64_one_blob_ingested_by_many_is_one_layer(self, rig: Rig) -> None:
        base = rig.ingest(LOWER)
        read, made = os.pipe()

        def told(event: StorageEvent) -> None:
            if event.kind == "ingested":
                os.write(made, b"1")

        def work() -> str:
            rig.layers.emit = told
            start.wait()
            return rig.ingest(UPPER, base).path

        try:
            with nothing_left(rig.root), gate() as start:
                children = [Child(work) for _ in range(8)]
                start.open()
                paths = {outcome.result() for outcome in gather(children)}
            assert len(paths) == 1
            os.set_blocking(read, False)
            assert os.read(read, 100) == b"1", "the layer was made more than once"
        finally:
            os.close(read)
            os.close(made)
        assert len(list(rig.layers.keys())) == 2
        assert_sound(rig)

    # --- death

    @pytest.mark.parametrize("operation", ["ingest", "prepare", "mount", "commit", "remove"])
    def test_65_killed_at_every_failpoint(self, rig: Rig, operation: str) -> None:
        base = rig.ingest(LOWER)
        life(rig, base)  # so that nothing is loaded, and no directory missing, when it counts
        stack = rig.layers.mended([base, rig.ingest(UPPER, base)])
        wanted = shown(rig, stack)
        commit = write(rig, stack, rw := rig.prepare(stack))
        rig.discard(rw)
        for layer in reversed(stack[1:]):
            rig.layers.remove(layer.id)
        names: Sequence[str] = getattr(failpoints, operation.upper())
        for name in names:
            for count in range(1, _OCCURRENCES):
                with nothing_left(rig.root):
                    outcome = killed_at(name, lambda: life(rig, base), count=count)
                if outcome.ok:
                    break
                assert outcome.signal == signal.SIGKILL, f"{name}: {outcome}"
                after = Rig(self.driver, rig.root, self.options)
                after.sweep()
                assert_sound(after)
                # What was placed before the death is whole, and the retry of all of it succeeds.
                again = after.layers.mended([base, after.ingest(UPPER, base)])
                assert_shown(after, again, wanted)
                for left in os.listdir(f"{rig.root}/containers"):
                    write(after, again, f"{rig.root}/containers/{left}/rw")
                    after.discard(f"{rig.root}/containers/{left}/rw")
                made = write(after, again, rw := after.prepare(again))
                assert len(made) == len(commit)
                after.discard(rw)
                for layer in reversed(again[1:]):
                    after.layers.remove(layer.id)
                assert_sound(after)
            else:
                pytest.fail(f"{name} is reached without end")
            assert count > 1, f"the failpoint {name} was never reached"

    def test_66_a_container_whose_holder_was_killed_mounts_again_at_once(self, rig: Rig) -> None:
        stack = image(rig)
        rw = rig.prepare(stack)
        for number in range(3):
            with nothing_left(rig.root), gate() as written:

                def hold(number: int = number) -> None:
                    with rig.rootfs(stack, rw) as root:
                        with open(f"{root.path}/etc/motd", "a") as file:
                            file.write(f"round {number}\n")
                        os.mkdir(f"{root.path}/round{number}")
                        written.open()
                        time.sleep(60)

                child = Child(hold)
                written.wait_for(child)
                child.kill()
                assert child.wait().signal == signal.SIGKILL
                with rig.rootfs(stack, rw) as root:
                    with open(f"{root.path}/etc/motd") as file:
                        assert file.read() == "hello\n" + "".join(f"round {n}\n" for n in range(number + 1))
                    assert os.path.isdir(f"{root.path}/round{number}")
        rig.discard(rw)

    @pytest.mark.parametrize("marker", ["of another boot", "empty"])
    def test_67_a_layer_that_a_power_cut_may_have_damaged_is_made_again(
        self, rig: Rig, marker: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = rig.ingest(LOWER)
        rig.layers.sync()
        top = rig.ingest(UPPER, base)
        wanted = shown(rig, rig.layers.mended([base, top]))
        # As after the power came back: the rename was on the disk, some of the content was not.
        if marker == "empty":
            with open(f"{rig.layers.directory}/.unsynced/{os.path.basename(top.path)}", "w"):
                pass
        monkeypatch.setattr(layers, "boot_id", lambda: "the boot after the power cut")
        for path, _, files in os.walk(top.path):
            for name in files:
                full = os.path.join(path, name)
                if name != "meta.json" and not os.path.islink(full) and os.path.isfile(full):
                    with contextlib.suppress(OSError):  # a read-only snapshot
                        os.truncate(full, 0)
        after = Rig(self.driver, rig.root, self.options)
        after.sweep()
        assert after.layers.find(base.id), "a layer that was synced is not found"
        assert after.layers.find(top.id) is None, "a layer that was not synced is taken for whole"
        made: list[str] = []
        after.layers.emit = lambda event: made.append(event.kind)
        again = after.layers.mended([base, after.ingest(UPPER, base)])
        assert "ingested" in made
        assert_shown(after, again, wanted)
        assert_sound(after)
        after.layers.sync()
        monkeypatch.setattr(layers, "boot_id", lambda: "the next boot")
        assert all(after.layers.find(layer.id) for layer in again)

    # --- full disks

    def test_68_a_full_disk_harms_nothing_that_was_there(self, rig: Rig) -> None:
        def work() -> None:
            disk = disks.fitting(self.driver, self.options, f"{rig.root}/small", 48 * MiB, self.file_systems)
            small = Rig(self.driver, f"{disk.path}/store", self.options)
            fill_and_recover(small, f"{disk.path}/filler")
            small.close()
            disk.unmount()

        try:
            with nothing_left(rig.root):
                outcome = run(work, mounts=True, seconds=110)
                if rig.env.userns and outcome.kind == "NoDisk":
                    pytest.skip(f"a user namespace can mount a tmpfs only: {outcome.error}")
                outcome.result()
        finally:
            _remove_images(f"{rig.root}/small")

    def test_69_a_quota_holds(self, rig: Rig) -> None:
        if not rig.caps.quota:
            pytest.skip("the driver does not claim quota")
        stack = image(rig)
        rw = rig.prepare(stack, 8 * MiB)
        other = rig.prepare(stack)
        with rig.rootfs(stack, rw) as root:
            with open(f"{root.path}/fits", "wb") as file:
                file.write(os.urandom(2 * MiB))
            error = _failure(lambda: _append(f"{root.path}/much", 32 * MiB))
            assert _says_full(error), error
            with open(f"{root.path}/fits", "rb") as file:
                assert len(file.read()) == 2 * MiB
            os.unlink(f"{root.path}/much")
            with rig.rootfs(stack, other) as free:
                _append(f"{free.path}/much", 16 * MiB)
        rig.discard(rw)
        rig.discard(other)

    def test_70_a_layer_in_use_is_not_removed(self, rig: Rig) -> None:
        stack = image(rig)
        below = shown(rig, stack)
        with rig.rootfs(stack) as root, gate() as ready, gate() as done:

            def hold() -> None:
                with Lease(rig.root, self.driver.name, [layer.id for layer in stack], work="the test"):
                    ready.open()
                    done.wait()

            child = Child(hold)
            ready.wait_for(child)
            for layer in stack:
                with pytest.raises(Conflict, match="in use by the test"):
                    rig.layers.remove(layer.id)
            assert snapshot(root.path) == below
            # A lease ends with its holder, however that ends.
            child.kill()
            child.wait()
        for layer in reversed(stack):
            rig.layers.remove(layer.id)
            assert rig.layers.find(layer.id) is None
        assert_sound(rig)

    # --- what comes in

    @pytest.mark.parametrize("kind", ["lies", "lies at its end", "cut", "noise", "empty"])
    def test_71_a_corrupt_blob_gives_no_layer(self, rig: Rig, kind: str) -> None:
        if rig.caps.lazy:
            pytest.skip("the driver is lazy: it verifies content when it is read (case 72)")
        base = rig.ingest(LOWER)
        good = tar(File("etc/motd", b"bad\n"), File("large", CONTENT))
        digest = TarBlob(good).digest
        blob = {
            "lies": lambda: TarBlob(good.replace(b"0000007\n", b"0000008\n"), diff_id=digest),
            "lies at its end": lambda: TarBlob(good + bytes(1024), diff_id=digest),
            "cut": lambda: TarBlob(good[: len(good) // 2]),
            "noise": lambda: TarBlob(b"\1" + os.urandom(10239)),
            "empty": lambda: TarBlob(b"", diff_id=digest),
        }[kind]()
        error = _failure(lambda: rig.ingest(blob, base))
        assert isinstance(error, PyrunError), f"{type(error).__name__}: {error}"
        if kind.startswith("lies"):
            assert isinstance(error, DigestMismatch), f"{type(error).__name__}: {error}"
        assert len(list(rig.layers.keys())) == 1
        assert_sound(rig)
        rig.layers.mended([base, rig.ingest(good, base)])
        assert_sound(rig)

    def test_71b_what_follows_the_end_of_a_tar_is_read_and_verified(self, rig: Rig) -> None:
        layer = rig.ingest(tar(File("file", b"content")) + bytes(64 << 10))
        with rig.view([layer]) as view, open(f"{view.path}/file", "rb") as file:
            assert file.read() == b"content"

    def test_72_a_lazy_layer_whose_network_died_gives_errors_and_never_zeros(self, rig: Rig) -> None:
        if not rig.caps.lazy:
            pytest.skip("the driver does not claim lazy")
        blob = _Dying(tar(File("file", CONTENT)))
        layer = rig.ingest(blob)
        with rig.view([layer]) as view:
            blob.dead = True
            fd = os.open(f"{view.path}/file", os.O_RDONLY)
            try:
                for at in range(0, len(CONTENT), 4096):
                    try:
                        data = os.pread(fd, 4096, at)
                    except OSError as error:
                        if error.errno != errno.EIO:
                            raise
                    else:
                        assert data == CONTENT[at : at + 4096]
            finally:
                os.close(fd)

    # --- ids

    def test_73_root_of_a_user_namespace_is_root_on_disk(self, rig: Rig) -> None:
        if rig.env.userns:
            pytest.skip("idmapped mounts need root: a user namespace can't make them")
        stack = rig.stack(
            tar(Dir("dir"), File("dir/root", b"r"), File("five", b"f", uid=5, gid=6), Symlink("link", "five"))
        )
        extent = [userns.IdMap(0, 100000, 65536)]
        namespace = userns.hold(extent, extent)
        try:
            if rig.caps.idmap:
                self._idmapped(rig, stack, namespace)
                return
            problem = None
            try:
                self._idmapped(rig, stack, namespace)
            except (AssertionError, OSError, PyrunError) as error:
                problem = error
            assert problem is not None, "the driver denies idmap, and it works"
        finally:
            os.close(namespace)

    def _idmapped(self, rig: Rig, stack: list[Any], namespace: int) -> None:
        rw = rig.prepare(stack)
        try:
            with rig.rootfs(stack, rw, idmap=namespace) as root:
                _owned(root.path, {"dir": (0, 0), "dir/root": (0, 0), "five": (5, 6), "link": (0, 0)}, 100000)

                def contained() -> None:
                    setns(namespace, CLONE_NEWUSER)
                    os.setresgid(0, 0, 0)
                    os.setresuid(0, 0, 0)
                    for name in ("made", "dir/made"):
                        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=root.fd))
                    os.chown("made", 7, 8, dir_fd=root.fd)
                    os.chmod("dir", 0o750, dir_fd=root.fd)
                    os.mkdir("new", dir_fd=root.fd)
                    os.unlink("link", dir_fd=root.fd)

                run(contained).result()
                inside = {"dir": (0, 0), "dir/made": (0, 0), "made": (7, 8), "new": (0, 0), "five": (5, 6)}
                _owned(root.path, inside, 100000)
                committed = root.commit(owner=lambda uid, gid: (uid - 100000, gid - 100000))
            # Without the map, the ids are those that the container saw; a later mount has the same.
            with rig.rootfs(stack, rw) as root:
                _owned(root.path, inside, 0)
            with rig.rootfs(stack, rw, idmap=namespace) as root:
                _owned(root.path, inside, 100000)
        finally:
            rig.discard(rw)
        with rig.view(rig.layers.mended([*stack, rig.ingest(committed, stack[-1])])) as view:
            _owned(view.path, inside, 0)
            assert not os.path.lexists(f"{view.path}/link")

    @pytest.mark.parametrize("ids", [65536, 1], ids=["many ids", "one id"])
    def test_74_in_a_user_namespace_it_works_or_says_why_not(self, rig: Rig, ids: int) -> None:
        # The kernel takes no extent that lies in two of the namespace above.
        extents = [
            userns.IdMap(above.inside, above.inside, min(above.count, ids - above.inside))
            for above in userns.read_map("/proc/self/uid_map")
            if above.inside < ids
        ]
        count = sum(extent.count for extent in extents)
        namespace = userns.hold(extents, extents)

        def work() -> str:
            setns(namespace, CLONE_NEWUSER)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            private_mounts()
            try:
                inner = Rig(self.driver, f"{rig.root}/rootless", self.options)
            except Unusable as unusable:
                return unusable.message.partition(": ")[2]
            assert inner.env.userns
            assert inner.env.single_uid == (count == 1)
            _rootless(inner, single=count == 1)
            inner.close()
            return "it works"

        life(rig, rig.ingest(LOWER))  # what is imported on the way may lie where the child can't read
        try:
            with nothing_left(rig.root):
                assert run(work).result(), "the refusal has no reason"
        finally:
            os.close(namespace)

    def test_75_a_store_of_another_kind_is_refused(self, rig: Rig) -> None:
        path = f"{rig.root}/storage.json"
        record = {
            "version": VERSION,
            "driver": self.driver.name,
            "userns": rig.env.userns,
            "entries": {},
            "verdicts": {},
        }
        for change, words in (
            ({"version": VERSION + 1}, "another version"),
            ({"userns": not rig.env.userns}, "was made by"),
            ({"driver": "no-such-driver"}, "no-such-driver"),
        ):
            records.write(path, {**record, **change})
            error = _failure(lambda: open_store(rig.env, "", {}))
            assert isinstance(error, ConfigError | StorageError), f"{change}: {error!r}"
            assert words in error.message, error.message
            assert records.read(path) == {**record, **change}, "the record was changed"
        os.unlink(path)


class _Dying(TarBlob):
    """A blob whose registry can't be reached any more once ``dead``."""

    dead = False

    def range(self, offset: int, count: int) -> bytes:
        if self.dead:
            raise RegistryError("the registry can't be reached")
        return super().range(offset, count)


class _Interrupted(TarBlob):
    """A blob during whose reading something happens: ``event`` is called once ``after`` bytes were read."""

    def __init__(self, content: bytes, after: int, event: Callable[[], object]) -> None:
        super().__init__(content)
        self.after = after
        self.event = event

    def _open(self) -> BinaryIO:
        return cast(BinaryIO, _Interrupting(super()._open(), self.after, self.event))


class _Interrupting(io.RawIOBase):
    def __init__(self, file: BinaryIO, after: int, event: Callable[[], object]) -> None:
        self._file = file
        self._after = after
        self._event: Callable[[], object] | None = event

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        if self._event and self._file.tell() >= self._after:
            self._event()
            self._event = None
        view = memoryview(cast(bytearray, buffer))
        data = self._file.read(min(len(view), 64 << 10))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def fill_and_recover(rig: Rig, filler: str) -> None:
    """Fill the file system of ``rig``, a fresh store, by writing ``filler``; what was there is whole, what fails
    says why, and once there is space again all of it succeeds."""
    big = os.urandom(4 * MiB)
    stack = rig.stack(tar(Dir("d"), File("d/old", b"old"), File("big", big)))
    rw = rig.prepare(stack)
    with rig.rootfs(stack, rw) as root, open(f"{root.path}/kept", "wb") as file:
        file.write(b"kept")
        os.fsync(file.fileno())
    below = shown(rig, stack)
    more = tar(File("more", os.urandom(8 * MiB)), Dir("d"), File("d/new", b"new"))

    # The disk fills up in the midst of a layer; after that, it is full from the beginning.
    disks.fill(filler, 16 * MiB)
    for blob in (_Interrupted(more, 2 * MiB, lambda: disks.fill(filler)), TarBlob(more)):
        error = _failure(partial(rig.ingest, blob, stack[-1]))
        assert _says_full(error), f"ingest: {error!r}"
        assert len(list(rig.layers.keys())) == 1
        assert os.listdir(f"{rig.root}/staging") == []
        disks.fill(filler)
    with _unless_full():
        whole = rig.prepare(stack)
        # What was prepared is whole, though nothing may be left to mount it with.
        with contextlib.suppress(PyrunError, OSError), rig.rootfs(stack, whole) as root:
            assert snapshot(root.path) == below, (
                "a container was prepared on a full disk, and lacks something"
            )
        rig.discard(whole)
    rig.sweep()
    assert os.listdir(f"{rig.root}/staging") == []
    assert len(os.listdir(f"{rig.root}/containers")) == 1
    with _unless_full(), rig.rootfs(stack, rw) as root:
        error = _failure(lambda: _append(f"{root.path}/big", 8 * MiB))
        assert _says_full(error), f"copy-up: {error!r}"
        with open(f"{root.path}/big", "rb") as file:
            assert file.read(len(big)) == big, "a write that failed for want of space damaged the file"
    assert_shown(rig, stack, below)

    os.truncate(filler, 0)
    os.unlink(filler)
    os.sync()  # some file systems give space back only then
    with rig.rootfs(stack, rw) as root:
        with open(f"{root.path}/kept", "rb") as file:
            assert file.read() == b"kept"
        _append(f"{root.path}/big", MiB)
        with open(f"{root.path}/big", "rb") as file:
            assert file.read(len(big)) == big
    rig.discard(rw)
    with rig.rootfs(rig.layers.mended([*stack, rig.ingest(more, stack[-1])])) as root:
        assert os.path.getsize(f"{root.path}/more") == 8 * MiB
        assert sorted(os.listdir(f"{root.path}/d")) == ["new", "old"]
    assert_sound(rig)


def _rootless(rig: Rig, *, single: bool) -> None:
    """A container's life in a user namespace, with one id or many."""
    try:
        stack = image(rig)
    except (PyrunError, OSError):
        if not single:
            raise
        stack = rig.stack(LOWER)  # refused for its owners
    else:
        # With one id, another's files become one's own.
        with rig.view(stack) as view:
            st = os.lstat(f"{view.path}/etc/noted")
            assert (st.st_uid, st.st_gid) == ((0, 0) if single else (5, 6))
            assert os.getxattr(f"{view.path}/etc/noted", "user.note") == b"kept"
    rw = rig.prepare(stack)
    with rig.rootfs(stack, rw) as root:
        assert os.stat(f"{root.path}/tmp").st_mode & 0o7777 == 0o1777
        shutil.rmtree(f"{root.path}/usr")
        os.mkdir(f"{root.path}/usr")
        assert os.listdir(f"{root.path}/usr") == []
        os.mkfifo(f"{root.path}/fifo")
        with open(f"{root.path}/etc/motd", "a") as file:
            file.write("more\n")
        if single:
            with pytest.raises(OSError):
                os.chown(f"{root.path}/etc/motd", 5, 5)
        else:
            os.chown(f"{root.path}/etc/motd", 9, 9)
        tree = snapshot(root.path)
        committed = root.commit()
    with rig.view(rig.layers.mended([*stack, rig.ingest(committed, stack[-1])])) as view:
        assert snapshot(view.path) == tree
    rig.discard(rw)


def _owned(path: str, owners: Mapping[str, tuple[int, int]], shift: int) -> None:
    for name, (uid, gid) in owners.items():
        st = os.lstat(f"{path}/{name}")
        assert (st.st_uid, st.st_gid) == (uid + shift, gid + shift), (
            f"{name} is owned by {st.st_uid}:{st.st_gid}"
        )


def _append(path: str, size: int) -> None:
    """Append ``size`` bytes and have them on the disk."""
    with open(path, "ab", buffering=0) as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, MiB)))
        os.fsync(file.fileno())


def _failure(work: Callable[[], object]) -> BaseException:
    """The exception that ``work`` raises: one that a driver may raise, and not some other."""
    try:
        work()
    except (PyrunError, OSError) as error:
        return error
    raise AssertionError("it succeeded")


@contextlib.contextmanager
def _unless_full() -> Iterator[None]:
    """The block may fail, for want of space and for no other reason."""
    try:
        yield
    except (PyrunError, OSError) as error:
        if not _says_full(error):
            raise


def _says_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", 0) in _FULL or any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _remove_images(path: str) -> None:
    """Remove the images that `pyrun.testing.disks.fitting` left beside ``path``."""
    for kind in disks.LOOP_KINDS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}.{kind}")
