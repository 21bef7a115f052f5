"""The exception tree: every error says what failed, why, and what to do.

On the path of `run`: plain classes, no imports.

``message`` names the thing that failed and why; ``hint`` is one line on what to do about it.
``exit_code`` is what the ``pyrun`` command exits with when the error reaches it; ``run`` maps every
engine error to 125 as docker does, except the two that the spec of ``docker run`` sets apart
(126: found but not executable, 127: not found).
"""


class PyrunError(Exception):
    """Base of every error that pyrun raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(PyrunError):
    """An option or argument that can't be acted on."""

    exit_code = 125


class ConfigError(PyrunError):
    """The configuration file, registries.conf or a store record can't be used as it is."""


class NotFound(PyrunError):
    """No such image, container, driver, ..."""


class Conflict(PyrunError):
    """The name is taken, or the object is in use."""


class Unsupported(PyrunError):
    """The kernel, the host's set-up or this mode (rootless, ...) can't do what was asked."""


class KernelError(PyrunError):
    """A system call failed. ``errno``, ``syscall`` and ``path`` are kept for callers that branch on them."""

    def __init__(
        self, message: str, *, errno: int = 0, syscall: str = "", path: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno
        self.syscall = syscall
        self.path = path


# --- images -----------------------------------------------------------------------------------------------


class ImageError(PyrunError):
    """Something about an image: its name, its content, or the place it comes from."""


class InvalidReference(ImageError):
    """The text is not an image reference (OCI distribution spec; the grammar of distribution/reference)."""


class RegistryError(ImageError):
    """A registry can't be reached, or answered with an error."""


class Unauthorized(RegistryError):
    """The registry wants credentials, or refuses the ones it got."""


class ManifestUnknown(RegistryError):
    """The registry has no such repository, tag or digest."""


class PlatformUnavailable(ImageError):
    """The index lists no manifest for the platform; the message lists what there is."""


class DigestMismatch(ImageError):
    """Bytes differ from the digest or size that named them: tampered with, or damaged on the way."""


# --- layers and storage -------------------------------------------------------------------------------------


class LayerError(PyrunError):
    """A layer's tar stream is malformed, hostile or over a limit. Nothing of it was kept."""


class StorageError(PyrunError):
    """The store, or a storage driver, can't do its work."""


class TooManyLayers(StorageError):
    """More layers than the driver can stack; the message names the limit."""


# --- containers ---------------------------------------------------------------------------------------------


class ContainerError(PyrunError):
    """A container can't be created, started or changed."""

    exit_code = 125


class CommandNotFound(ContainerError):
    """The container's command does not exist inside it."""

    exit_code = 127


class CommandNotExecutable(ContainerError):
    """The container's command exists and can't be executed."""

    exit_code = 126
