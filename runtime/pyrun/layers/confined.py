"""Work on what a stranger sent, in a child process that can reach nothing but one directory.

The parent keeps the network, the store and the compressed bytes, which it hashes. It hands them through a pipe to the
child, which decompresses and unpacks: the code that hostile bytes could take over. The child is confined
(`pyrun.layers.confinement`) before it reads the first of them, and answers with one line of JSON, which the parent
believes no further than it must: errors are shown as text, names are checked again.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, cast

from .. import errors
from ..errors import LayerError, PyrunError, StorageError
from ..kernel import mount as m
from ..kernel import process as p
from ..kernel import seccomp
from ..kernel.files import write_all
from . import confinement
from .confined_child import CHUNK, MESSAGE, PLAIN, Buffer, Transform, Work, live
from .confinement import Confinement
from .stream import ThreadedReader

PIPE = 1 << 20  # bytes on their way to the child; an ordinary user may have as much (pipe-max-size)
ANSWER = 16 << 20  # bytes of an answer: it names the directories that a layer uses and doesn't list

_O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# A descriptor that children keep, for somebody who waits until all of them are gone; nobody may believe what they
# write to it.
lifeline = -1

# What a child may claim to have met; the rest is a StorageError.
_KINDS = ("LayerError", "DigestMismatch", "StorageError", "TooManyLayers", "Unsupported")


def run(
    feed: Iterable[Buffer],
    transform: Transform,
    work: Work,
    *,
    dirfd: int | None = None,
    keep: Sequence[str] = (),
    missing: list[str] | None = None,
) -> Any:
    """What ``work(stream, root)`` returns in a confined child: anything that JSON has.

    ``feed`` is iterated here, and each of its buffers sent before the next is asked for. ``transform`` makes of them,
    in a thread of the child, what ``stream`` reads (at most 1 MiB a piece). ``root`` is the directory ``dirfd``, by
    another fd: it is the child's root directory, without devices or programs; None stands for an empty, read-only
    one. ``keep`` names the capabilities that the work needs, of those that this process has (`confinement`).
    After ``work`` the stream is read to its end, so that ``transform`` sees all of ``feed``.

    ``transform`` and ``work`` must import nothing and open nothing by an absolute path: neither modules nor /proc are
    there. ``missing`` takes the parts of the confinement that this host did not give.

    Raises what ``feed`` raised, which comes before anything else: a damaged download is the better explanation of a
    bad layer. Else what the child raised (`PyrunError`; any other exception is called a defect), or `LayerError`
    where it was ended: by its limits, by its own misbehaviour, or from outside.
    """
    child = _Child(transform, work, dirfd, keep)
    try:
        child.send(feed)
        answer = child.answer()
    except BaseException:
        child.kill()
        raise
    finally:
        child.close()
    if missing is not None:
        missing += [str(word)[:200] for word in answer.get("missing", [])[:20]]
    return _result(answer)


class Reader(io.RawIOBase):
    """What ``transform`` makes of ``feed`` in a confined child, read as a file: for work that can't be done there.

    Reads raise as `run` does. At the end ``settle`` is called with what ``told`` returned in the child, and may raise.
    ``feed`` is iterated in a thread; closing early closes it, and waits for that.
    """

    def __init__(
        self,
        feed: Iterable[Buffer],
        transform: Transform,
        told: Callable[[], Any],
        settle: Callable[[Any], None],
    ) -> None:
        super().__init__()
        self._settle = settle
        self._failure: BaseException | None = None
        self._ended = self._stopped = False
        self._plain, plain = os.pipe()
        try:
            _widen(plain)

            def work(stream: ThreadedReader, root: int) -> Any:
                while piece := stream.read(CHUNK):
                    write_all(PLAIN, piece)
                return told()

            self._child = _Child(transform, work, None, (), plain)
        except BaseException:
            os.close(self._plain)
            raise
        finally:
            os.close(plain)
        self._thread = threading.Thread(target=self._pump, args=(feed,), daemon=True)
        self._thread.start()

    def _pump(self, feed: Iterable[Buffer]) -> None:
        try:
            self._child.send(feed, lambda: self._stopped)
        except BaseException as failure:
            self._failure = failure
            self._child.send(())  # the end, for the child; the reader finds the failure there
        finally:
            if isinstance(feed, Generator):
                feed.close()

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """At most ``size`` bytes, often fewer; everything for -1. b"" at the end."""
        if size is None or size < 0:
            return self.readall()
        if self._ended:
            self._check()
            return b""
        data = os.read(self._plain, min(size, CHUNK * 4))
        if not data and size:
            self._finish()
        return data

    def readinto(self, buffer: object, /) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)

    def _finish(self) -> None:
        self._ended = True
        try:
            self._thread.join()
            if self._failure is None:
                self._settle(_result(self._child.answer()))
        except BaseException as failure:
            self._failure = failure
        finally:
            self._child.kill()
            self._child.close()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        if not self.closed:
            if not self._ended:
                self._ended = self._stopped = True
                self._child.kill()
                self._thread.join()
                self._child.close()
            os.close(self._plain)
        super().close()


def probe() -> list[str]:
    """What of the confinement can't be had here, in words; nothing where all of it can. Takes milliseconds."""
    missing: list[str] = []
    try:
        run((), _nothing, lambda stream, root: None, missing=missing)
    except (OSError, PyrunError) as error:
        return [f"no confined process: {error}"]
    return missing


def _nothing(chunks: Iterator[Buffer]) -> Iterator[bytes]:
    for _ in chunks:
        pass
    return iter(())


class _Child:
    """The child, and this side's ends of the two pipes."""

    def __init__(
        self, transform: Transform, work: Work, dirfd: int | None, keep: Sequence[str], plain: int = -1
    ) -> None:
        data, self._data = os.pipe()
        self._answer, answer = os.pipe()
        self._status: int | None = None
        self.pid = -1
        tree = -1
        try:
            _widen(data)
            tree, detached = _tree(dirfd)
            if arch := seccomp.native():
                confinement.program(arch)  # compiled once, and here: in the child its table can't be read
            memory = confinement.address_space()
            refused = ""
            namespaces = True
            try:
                alone = len(os.listdir("/proc/self/task")) == 1
                if alone:
                    self.pid, pidfd = p.clone3(confinement.ALL_NAMESPACES)
                    if self.pid:
                        os.close(pidfd)
            except OSError as error:
                alone, refused = False, os.strerror(error.errno or 0)
            if not alone:
                # Only libc's fork leaves the locks of other threads in a state that a child can work with.
                namespaces = False
                self.pid = os.fork()
            if self.pid == 0:
                confined = Confinement(
                    namespaces=namespaces, refused=refused, detached=detached, memory=memory
                )
                live((data, answer, tree, plain, lifeline), confined, transform, work, keep)
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (data, answer, tree):
                if fd >= 0:
                    os.close(fd)

    def send(self, feed: Iterable[Buffer], stopped: Callable[[], bool] = lambda: False) -> None:
        """All of ``feed``, and then the end. Goes on where the child has ended, until ``stopped``."""
        listening = True
        for chunk in feed:
            if stopped():
                break
            if listening:
                try:
                    write_all(self._data, chunk)
                except BrokenPipeError:
                    listening = False
        os.close(self._data)
        self._data = -1

    def answer(self) -> dict[str, Any]:
        parts = []
        size = 0
        while part := os.read(self._answer, CHUNK):
            parts.append(part)
            size += len(part)
            if size > ANSWER:
                self.kill()
                raise LayerError(
                    f"layer: the names of directories that it doesn't list take more than {ANSWER} bytes"
                )
        self._wait()
        ended = _ended(self._status or 0)
        if ended is not None:
            raise ended
        try:
            found = json.loads(b"".join(parts))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("missing"), list):
            raise LayerError("layer: the process that unpacked it gave no answer", hint=_DEFECT)
        return cast("dict[str, Any]", found)

    def kill(self) -> None:
        if self._status is None and self.pid > 0:
            os.kill(self.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
            self._wait()

    def _wait(self) -> None:
        if self._status is None:
            _, self._status = os.waitpid(self.pid, 0)

    def close(self) -> None:
        for fd in (self._data, self._answer):
            if fd >= 0:
                os.close(fd)
        self._data = self._answer = -1
        if self._status is None and self.pid > 0:
            self._wait()


_DEFECT = "Either the layer made it do something else, or that is a defect of pyrun."


def _ended(status: int) -> PyrunError | None:
    """Why a child that left with ``status`` did so; None where it finished by itself."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGSYS:
            return LayerError(
                "layer: the process that unpacked it was ended for a system call that no unpacking makes",
                hint="The layer may have tried to break out. Don't use the image.",
            )
        if number == signal.SIGXCPU:
            return LayerError(f"layer: unpacking took more than {confinement.CPU} s of CPU time")
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        hint = "SIGKILL often means that memory ran out: see dmesg." if number == signal.SIGKILL else _DEFECT
        return LayerError(f"layer: the process that unpacked it was ended by {name}", hint=hint)
    code = os.waitstatus_to_exitcode(status)
    return (
        LayerError(f"layer: the process that unpacked it exited with {code}", hint=_DEFECT) if code else None
    )


def _result(answer: dict[str, Any]) -> Any:
    """The value of a child's answer; or raise what it says."""
    if "value" in answer:
        return answer["value"]
    if isinstance(kind := answer.get("error"), str):
        found = getattr(errors, kind, StorageError) if kind in _KINDS else StorageError
        raise found(_text(answer.get("message")), hint=_text(answer.get("hint")))
    if "memory" in answer:
        raise LayerError(
            f"layer: unpacking it takes more than {confinement.MEMORY >> 20} MiB of memory",
            hint="No sound layer needs that.",
        )
    problem = StorageError(f"unpacking failed: {_text(answer.get('crash'))}", hint=_DEFECT)
    problem.add_note(_text(answer.get("trace"), lines=True))
    raise problem


def _text(value: object, *, lines: bool = False) -> str:
    """A child's words, without what could drive a terminal."""
    text = str(value or "")[: MESSAGE if not lines else 4 * MESSAGE]
    return "".join(
        c if c.isprintable() or (c == "\n" and lines) else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def _widen(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
    except OSError:
        pass  # the user's pipes have taken what they may: smaller steps


def senseless() -> LayerError:
    """For an answer that no sound child gives."""
    return LayerError("layer: the process that unpacked it gave a senseless answer", hint=_DEFECT)


def _tree(dirfd: int | None) -> tuple[int, bool]:
    """(fd, True) of a detached mount of the directory, or of an empty one; (the directory itself, False) where this
    process may mount nothing."""
    try:
        if dirfd is not None:
            return m.open_tree(dirfd, ""), True
        return m.new_mount("tmpfs", {"size": "4k", "mode": "0755"}, attributes=m.MOUNT_ATTR_RDONLY), True
    except OSError:
        if dirfd is not None:
            return os.open(".", _O_DIRECTORY, dir_fd=dirfd), False
    import tempfile

    name = tempfile.mkdtemp(prefix="pyrun-")
    try:
        return os.open(name, _O_DIRECTORY), False
    finally:
        os.rmdir(name)  # nothing can be made in a directory that is gone
