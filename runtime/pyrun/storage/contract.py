"""The storage-driver contract, version 1. This module's text is the specification.

On the path of `run`: plain classes with ``__slots__``; typing names only under TYPE_CHECKING.

A driver turns a *blob* into its native form, and *layers* into one **detached mount fd**. The engine owns
everything else: names, locks, staging, digests, the tar stream, whiteout decoding, garbage collection and
attaching. So a driver keeps no state of its own, never mounts anywhere on the host, and may be killed at
any instruction: what it was writing lies in a staging directory that the engine removes.

Terms: a *layer* is immutable and committed; *rw* is one container's writable directory; *bottom to top*
is the order in which an image lists its layers; the *view* is a mount's root as a directory fd.

What may run concurrently: everything, in any number of processes, except two calls that name the same
``dest`` or ``rw``, which the engine never makes. A layer is removed only when nothing uses it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, BinaryIO, ClassVar, Literal, Protocol

    from ..layers.unpack import Unpacked

    Whiteouts = Literal["overlay", "userxattr", "aufs", "apply"]
    Option = bool | int | str | tuple[str, ...]

    class Blob(Protocol):
        """A layer's content as the registry names it, perhaps **not downloaded yet**.

        One pass: of ``tar``, ``unpack`` and ``confined`` one may be called, once. A lazy driver calls none of them;
        ``range`` may be called any number of times.

        What a registry sent is decompressed, and by ``unpack`` and ``confined`` also read, in a confined child
        process (`pyrun.layers.confined`).
        """

        digest: str  # of the compressed bytes, "sha256:<hex>"
        diff_id: str  # of the uncompressed tar, "sha256:<hex>"
        media_type: str
        annotations: Mapping[str, str]
        size: int  # compressed bytes
        verified: bool  # True once EOF was reached and both digests held

        def tar(self) -> BinaryIO:
            """The uncompressed tar stream. Starts the download; EOF verifies size and both digests, and
            raises `DigestMismatch` where one fails."""

        def unpack(self, dirfd: int, whiteouts: Whiteouts) -> Unpacked:
            """Extract into the empty directory ``dirfd`` by the rules of `pyrun.layers.unpack`, to EOF.

            "overlay" writes 0/0 character devices and ``trusted.overlay.opaque``; "userxattr" writes
            ``user.overlay.opaque`` instead; "aufs" writes the tar's own ``.wh.`` names; "apply" deletes what
            the whiteouts name (for chained drivers, whose ``dirfd`` starts as a copy of the parent).
            """

        def confined(
            self, dirfd: int, work: Callable[[BinaryIO, int], Unpacked], keep: Sequence[str] = ()
        ) -> Unpacked:
            """For a driver that keeps a layer in a form of its own: ``work(tar stream, directory)`` in a confined
            child, to EOF; what it returns comes back. ``directory`` is another fd of ``dirfd``, which is the child's
            root and all that it can reach: ``work`` opens by ``dir_fd``, and imports nothing that is not imported
            already. It has the capabilities that ``keep`` names (`pyrun.layers.confinement`), and can't start
            processes or threads."""

        def range(self, offset: int, count: int) -> bytes:
            """``count`` bytes of the *compressed* blob from ``offset``, fetched with the registry's
            credentials, or read from the content store where the blob is there. Fewer at its end. Not
            verified: a lazy driver checks them against digests of its own. Raises `RegistryError`."""


API = 1


class Layer:
    """An immutable, committed layer. ``id`` is the diff_id, or the chain_id where ``Caps.chained``."""

    __slots__ = ("id", "path")

    def __init__(self, id: str, path: str) -> None:
        self.id = id
        self.path = path

    def __repr__(self) -> str:
        return f"Layer({self.id!r})"


class Change:
    """One difference between a container's view and its layers.

    path  root-relative, without a leading slash; the empty name is the root directory itself
    kind  "add", "modify" (content, attributes or type), or "delete" (of a directory: with all below it)
    """

    __slots__ = ("kind", "path")

    def __init__(self, path: bytes, kind: Literal["add", "modify", "delete"]) -> None:
        self.path = path
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Change) and (self.path, self.kind) == (other.path, other.kind)

    def __hash__(self) -> int:
        return hash((self.path, self.kind))

    def __repr__(self) -> str:
        return f"Change({self.path!r}, {self.kind!r})"


class Usage:
    """What a directory takes on disk: ``bytes`` of allocated blocks, and ``inodes``; hard links count once."""

    __slots__ = ("bytes", "inodes")

    def __init__(self, bytes: int, inodes: int) -> None:
        self.bytes = bytes
        self.inodes = inodes

    def __repr__(self) -> str:
        return f"Usage({self.bytes}, {self.inodes})"


class Caps:
    """What a driver can do. Each flag changes what the engine does, and the conformance suite tries each: a
    claim that does not hold fails, and so does a denial of something that works.

    chained     a layer's native form contains its parent's: layers are ingested one after the other and
                keyed by chain_id
    idmap       ``mount`` honours its ``idmap`` argument; without it the engine refuses containers in a user
                namespace of their own, before anything is written
    rename_dir  rename(2) of a directory that comes from a layer works; else it fails with EXDEV. Without it
                the driver is refused where the configuration's ``storage.require`` names it
    hardlinks   two names of one file of a layer stay one file when one of them is written, and a further name
                made for one is told to be the same file; refused without it as ``rename_dir`` is
    lazy        the driver verifies content as it is read, so the engine keeps a layer whose blob was not
                read to EOF, and needs no copy of the blob
    quota       ``prepare`` enforces its ``size``; without it the engine refuses --storage-opt size=
    max_layers  the deepest stack that mounts; None: no limit of the driver's own. The engine refuses a
                deeper image before anything of it is written
    """

    __slots__ = ("chained", "hardlinks", "idmap", "lazy", "max_layers", "quota", "rename_dir")

    def __init__(
        self,
        *,
        chained: bool = False,
        idmap: bool = True,
        rename_dir: bool = True,
        hardlinks: bool = True,
        lazy: bool = False,
        quota: bool = False,
        max_layers: int | None = None,
    ) -> None:
        self.chained = chained
        self.idmap = idmap
        self.rename_dir = rename_dir
        self.hardlinks = hardlinks
        self.lazy = lazy
        self.quota = quota
        self.max_layers = max_layers

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return "Caps(" + ", ".join(f"{k}={v!r}" for k, v in self.as_dict().items()) + ")"


class Verdict:
    """The outcome of a probe.

    ``why`` is never empty: for a usable driver it sums up what the trial found, for an unusable one it is
    the reason, with ``fix`` saying what to do. ``found`` holds what the driver wants to know again without
    repeating the trial (as JSON has it); the engine stores it and hands it to the constructor.

    ``found["flaws"]``, where there is one, says what the kernel or program that the driver stands on is known to
    get wrong and no flag of `Caps` tells: by the number of the conformance case that shows it ("22a"), in words.
    The suite expects that case to fail, and fails where it passes.
    """

    __slots__ = ("caps", "fix", "found", "ok", "why")

    def __init__(
        self,
        ok: bool,
        why: str,
        fix: str = "",
        caps: Caps | None = None,
        found: Mapping[str, Any] | None = None,
    ) -> None:
        self.ok = ok
        self.why = why
        self.fix = fix
        self.caps = caps or Caps()
        self.found = dict(found or {})

    def __repr__(self) -> str:
        return f"Verdict(ok={self.ok}, why={self.why!r})"


class Env:
    """Where and as whom a driver works. Drivers read this and never ``geteuid``.

    root        the store's directory. Layers and rw directories lie beneath it, on one file system
    userns      True when the engine works in a user namespace (rootless): no trusted.* xattrs, no devices
    single_uid  True when that namespace maps one id only: chown to any other id fails with EINVAL
    """

    __slots__ = ("root", "single_uid", "userns")

    def __init__(self, root: str, *, userns: bool = False, single_uid: bool = False) -> None:
        self.root = root
        self.userns = userns
        self.single_uid = single_uid


class Driver(ABC):
    """A storage driver. Four methods make one: `probe`, `ingest`, `prepare`, `mount`. The others have defaults
    that are right for any driver, and may be overridden by faster ones.

    ``Options``: the names of the driver's options, each with its default: a bool, int or str, whose type is
    the option's; or a tuple of the words that are allowed, the default first. They come typed from
    ``[storage.<name>]`` in the configuration and as text from ``--storage-opt <name>.<option>=<value>``; an
    unknown name or word is refused with the list of valid ones.
    """

    name: ClassVar[str]
    api: ClassVar[int] = API
    Options: ClassVar[Mapping[str, Option]] = {}

    def __init__(self, env: Env, options: Mapping[str, Any], verdict: Verdict) -> None:
        self.env = env
        self.options = options
        self.verdict = verdict

    @classmethod
    @abstractmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        """Try the real thing below ``env.root``: mount, write, delete a lower directory, make it again, read.

        Never raises, leaves nothing behind, takes milliseconds. The engine caches the verdict by boot id,
        kernel, device of the root, driver version and options.
        """

    @abstractmethod
    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> Unpacked | None:
        """Turn ``blob`` into this driver's native form below ``dest``, a fresh, empty, private directory.

        May raise at any point: the engine removes ``dest``. On return the engine syncs and renames ``dest``
        into place, so nothing written may hold an absolute path. ``parent`` is None unless ``Caps.chained``,
        and for the bottom layer. Concurrent calls for different blobs are normal; for one blob the engine
        makes one call, and everybody shares its result. ``meta.json`` in ``dest`` is the engine's.

        Returns what ``blob.unpack`` returned, or an `Unpacked` of its own making, from which the engine
        mends what an independent layer can't know (attributes of directories that it uses and doesn't list;
        an opaque root); None where there is nothing to mend, as where ``Caps.chained``.
        """

    @abstractmethod
    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        """Make the writable state of one container over ``layers`` (bottom to top, perhaps none) in the fresh
        directory ``dest``, which the engine renames into place afterwards. Same atomicity as `ingest`.

        ``size`` limits what the container may write, in bytes: given only where ``Caps.quota``. Past it,
        writes fail with EDQUOT or ENOSPC. The root directory of a stack without layers is 0755, 0:0.
        """

    @abstractmethod
    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        """A **detached mount** of ``layers`` (bottom to top), as a file descriptor the caller owns.

        With ``rw`` (made by `prepare`) it is writable; with None it refuses writes with EROFS. It appears
        in no mountinfo and vanishes when the last fd and the last attachment are gone. ``idmap`` is the fd
        of a user namespace: files owned by n on disk appear as that namespace's n, and files made through
        the mount are stored by the namespace's ids. At most one live mount a ``rw``; the engine sees to it,
        and any number of read-only mounts beside it. What one mount wrote, the next mount of ``rw`` shows.

        Raises `TooManyLayers`, `Unsupported` (with a reason and a fix) or OSError.
        """

    def changes(
        self, layers: Sequence[Layer], rw: str, view: int, idmap: int | None = None
    ) -> Iterator[Change]:
        """How ``view``, a live mount of ``rw`` over ``layers``, differs from the layers alone; sorted so that
        a directory stands before what is in it. ``idmap`` is what the view was mounted with.

        The container may be running: what changes meanwhile is told or not. The default compares the two
        trees, which reads every file whose attributes are equal and whose ctime is not.
        """
        from .changes import compare

        below = self.mount(layers, None, idmap)
        try:
            yield from compare(below, view)
        finally:
            import os

            os.close(below)

    def usage(self, path: str) -> Usage:
        """What the layer or rw directory ``path`` takes on disk, its parents not counted. May race with
        writers. The default adds up allocated blocks."""
        from .changes import allocated

        return allocated(path)

    def server(self, mount: int) -> int | None:
        """The pidfd (the caller's to close) of the process that serves ``mount``, a result of `mount`; None,
        the default, where the kernel alone does. When that process dies, the engine ends the container and
        says so; when the mount goes, the process must end by itself."""
        return None

    def remove(self, path: str) -> None:
        """Remove a layer, rw or staging directory, half-made ones too. Idempotent: a missing path is success."""
        from ..layers.remove import remove_tree

        remove_tree(path)

    @classmethod
    def version(cls) -> str:
        """Part of the probe cache's key: change it when the probe's meaning changes."""
        return "1"


class DriverReport:
    """One line of ``pyrun storage doctor``: state is "selected", "usable", "no" or "broken". ``caps`` is None
    where the driver could not be loaded."""

    __slots__ = ("caps", "distribution", "fix", "name", "state", "why")

    def __init__(
        self, name: str, state: str, why: str, fix: str = "", distribution: str = "", caps: Caps | None = None
    ) -> None:
        self.name = name
        self.state = state
        self.why = why
        self.fix = fix
        self.distribution = distribution
        self.caps = caps


def typed_options(driver: type[Driver], given: Mapping[str, Any]) -> dict[str, Any]:
    """``driver.Options`` overlaid with ``given``, each value converted to its default's type.

    Raises `UsageError` for an unknown name (listing the valid ones) or a value of another type.
    """
    from ..errors import UsageError

    options: dict[str, Any] = {
        key: default[0] if isinstance(default, tuple) else default for key, default in driver.Options.items()
    }
    for key, value in given.items():
        if key not in driver.Options:
            valid = ", ".join(sorted(driver.Options)) or "none"
            raise UsageError(
                f"storage driver {driver.name} has no option {key!r}", hint=f"Its options: {valid}."
            )
        default = driver.Options[key]
        if isinstance(default, tuple):
            if value not in default:
                raise UsageError(
                    f"storage option {driver.name}.{key} can't be {value!r}",
                    hint=f"One of {', '.join(default)}.",
                )
            options[key] = value
            continue
        if isinstance(default, bool):
            if isinstance(value, str) and value.lower() in ("true", "1", "yes", "on"):
                value = True
            elif isinstance(value, str) and value.lower() in ("false", "0", "no", "off"):
                value = False
        elif isinstance(default, int) and isinstance(value, str) and value.isdecimal():
            value = int(value)
        if type(value) is not type(default):
            raise UsageError(
                f"storage option {driver.name}.{key} is a {type(default).__name__}, not {value!r}",
                hint=f"Its default is {default!r}.",
            )
        options[key] = value
    return options
