"""Changing image records: one writer at a time, and an index.json that follows even where the writer is killed."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .local import ImageStore

MARK = ".unpublished"  # beside the records, while they and the index differ


class Changing:
    """Holds ``locks/images``; on entry, sets right what a writer that died in between left."""

    def __init__(self, store: ImageStore) -> None:
        from ..storage.locks import Lock

        self._store = store
        self._path = store.path
        self._locks = os.path.join(store.root, "locks")
        self._lock = Lock(os.path.join(self._locks, "images"))

    def __enter__(self) -> None:
        from .content import out_of_space
        from .index import publish

        try:
            os.makedirs(self._locks, mode=0o700, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise out_of_space(error, error.filename or self._path) from error
        try:
            os.makedirs(self._path, mode=0o700, exist_ok=True)
            for name in os.listdir(self._path):
                if name.startswith(".tmp-"):
                    os.unlink(os.path.join(self._path, name))
            if os.path.exists(os.path.join(self._path, MARK)):
                publish(self._store)
                os.unlink(os.path.join(self._path, MARK))
        except OSError as error:
            self._lock.release()
            raise out_of_space(error, error.filename or self._path) from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Unpublished:
    """A mark beside the records while they and the index differ: the next writer finds it, should this one be
    killed, and publishes all of them."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, MARK)

    def __enter__(self) -> None:
        os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            os.unlink(self._path)
