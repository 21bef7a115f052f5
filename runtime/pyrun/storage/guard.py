"""What stands between the engine and a driver: every failure of a driver reaches the user in words.

On the path of `run`. A driver is anybody's code. What it raises on purpose (`PyrunError`) passes through; an OSError
or any other exception becomes a `StorageError` that says what was asked of which driver, and why it failed.
"""

from __future__ import annotations

import errno
import os

from ..errors import PyrunError, StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from ..layers.unpack import Unpacked
    from .contract import Blob, Change, Driver, Env, Layer, Usage, Verdict

_HINTS = {
    errno.ENOSPC: "Free some space, or keep the store elsewhere (--root).",
    errno.EDQUOT: "Free some of the quota, or keep the store elsewhere (--root).",
    errno.EROFS: "The store's file system is read-only: see dmesg, and remount it.",
    errno.EIO: "The disk reports errors: see dmesg. `pyrun system check` tells what is damaged.",
}


class Guarded:
    """A driver with the same methods, whose every failure is a `PyrunError`. ``inner`` is the driver itself."""

    __slots__ = ("env", "inner", "name", "options", "verdict")

    def __init__(self, driver: Driver) -> None:
        self.inner = driver
        self.name: str = driver.name
        self.env: Env = driver.env
        self.options: Mapping[str, Any] = driver.options
        self.verdict: Verdict = driver.verdict

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> Unpacked | None:
        try:
            return self.inner.ingest(blob, dest, parent)
        except Exception as error:
            raise self._failed(f"make layer {blob.diff_id[:19]}", error) from error

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        try:
            if size is None:
                self.inner.prepare(layers, dest)
            else:
                self.inner.prepare(layers, dest, size)
        except Exception as error:
            raise self._failed("make a writable layer", error) from error

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        try:
            fd = self.inner.mount(layers, rw, idmap)
            if not isinstance(fd, int) or fd < 0:
                raise TypeError(f"mount returned {fd!r}, not a file descriptor")
            return fd
        except Exception as error:
            raise self._failed(
                f"mount {len(layers)} layer{'' if len(layers) == 1 else 's'}", error
            ) from error

    def changes(
        self, layers: Sequence[Layer], rw: str, view: int, idmap: int | None = None
    ) -> Iterator[Change]:
        try:
            yield from self.inner.changes(layers, rw, view, idmap)
        except Exception as error:
            raise self._failed("tell what changed", error) from error

    def usage(self, path: str) -> Usage:
        try:
            return self.inner.usage(path)
        except Exception as error:
            raise self._failed(f"tell the size of {path}", error) from error

    def server(self, mount: int) -> int | None:
        try:
            return self.inner.server(mount)
        except Exception as error:
            raise self._failed("tell what serves a mount", error) from error

    def remove(self, path: str) -> None:
        try:
            self.inner.remove(path)
        except Exception as error:
            raise self._failed(f"remove {path}", error) from error

    def _failed(self, what: str, error: Exception) -> PyrunError:
        if isinstance(error, PyrunError):
            return error
        text = f"the storage driver {self.name} can't {what}: "
        if isinstance(error, OSError):
            where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
            return StorageError(
                f"{text}{error.strerror or error}{where}",
                hint=_HINTS.get(
                    error.errno or 0, "pyrun storage doctor tries each driver and says why it can't work."
                ),
            )
        module = type(self.inner).__module__
        return StorageError(
            f"{text}{type(error).__name__}: {error}",
            hint=f"That is a defect of the driver, which is {module}.",
        )


def verdict_of(driver: type[Driver], env: Env, options: Mapping[str, Any]) -> Verdict:
    """The driver's verdict on ``env``; a probe that raises or returns something else is a refusal, too."""
    from .contract import Verdict

    try:
        verdict: object = driver.probe(env, options)
        problem = _nonsense(verdict)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: a stranger's probe must not end the program
        return Verdict(
            False, f"its probe raised {type(error).__name__}: {error}", "That is a defect of the driver."
        )
    if isinstance(verdict, Verdict) and not problem:
        return verdict
    return Verdict(False, f"its probe returned {problem}", "That is a defect of the driver.")


def _nonsense(verdict: Any) -> str:
    """What in a probe's result the engine could not show, keep or act on; "" where it is sound."""
    import json

    from .contract import Caps, Verdict

    if not isinstance(verdict, Verdict):
        return f"{verdict!r:.80}, which is no Verdict"
    # Whatever the annotations say.
    ok, why, fix, caps = (getattr(verdict, name) for name in ("ok", "why", "fix", "caps"))
    if type(ok) is not bool:
        return f"a Verdict whose ok is {ok!r:.80}"
    if not isinstance(why, str) or not why:
        return f"a Verdict without a reason: its why is {why!r:.80}"
    if not isinstance(fix, str):
        return f"a Verdict whose fix is {fix!r:.80}"
    if not isinstance(caps, Caps):
        return f"a Verdict whose caps are {caps!r:.80}"
    for name, value in caps.as_dict().items():
        depth = name == "max_layers"
        if not (value is None or (type(value) is int and value > 0) if depth else type(value) is bool):
            return f"Caps whose {name} is {value!r:.80}"
    try:
        json.dumps(verdict.found)
    except (TypeError, ValueError) as error:
        return f"a Verdict whose found is no JSON: {error}"
    return ""
