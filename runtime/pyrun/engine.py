"""Engine: the Python API. The command line calls only this.

On the path of `run`: rooms are imported by the method that needs them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .containers.options import ContainerOptions
    from .containers.record import Container
    from .images.record import HistoryEntry, Image, Progress, PullResult
    from .storage.contract import DriverReport


class Engine:
    """A store, and what can be done with it.

    root, state  directories (None: as root /var/lib/pyrun and /run/pyrun, else below XDG_DATA_HOME and
                 XDG_RUNTIME_DIR); made on first use, mode 0700
    config       a TOML file (None: /etc/pyrun/config.toml, then ~/.config/pyrun/config.toml, if present)
    storage      driver name (None: what the store recorded, else the configuration, else by choice)
    storage_opts "driver.option=value" each
    """

    def __init__(
        self,
        root: str | None = None,
        state: str | None = None,
        config: str | None = None,
        *,
        storage: str | None = None,
        storage_opts: Sequence[str] = (),
    ) -> None:
        raise NotImplementedError

    # --- images
    def pull(self, reference: str, *, platform: str | None = None, progress: Callable[[Progress], None] | None = None) -> PullResult: ...
    def images(self) -> list[Image]: ...                       # sorted newest first
    def image(self, name: str) -> Image: ...                   # reference, ID or unique ID prefix; NotFound
    def tag(self, source: str, target: str) -> None: ...
    def remove_image(self, name: str, *, force: bool = False) -> list[tuple[str, str]]: ...  # ("Untagged"|"Deleted", what)
    def history(self, name: str) -> list[HistoryEntry]: ...

    # --- containers
    def run(self, image: str, command: Sequence[str], options: ContainerOptions, *, pull: str = "missing",
            platform: str | None = None, progress: Callable[[Progress], None] | None = None) -> int: ...
        # pull: "always"|"missing"|"never". Foreground, on fds 0, 1, 2; returns the exit code
    def containers(self, *, all: bool = False) -> list[Container]: ...
    def container(self, name: str) -> Container: ...           # name, id or unique prefix; NotFound
    def remove_container(self, name: str, *, force: bool = False) -> None: ...

    # --- both
    def inspect(self, name: str, *, kind: str | None = None) -> dict[str, Any]: ...  # kind: "container"|"image"|None
    def spec(self, name: str) -> dict[str, Any]: ...           # the OCI runtime spec a container was started with
    def doctor(self) -> list[DriverReport]: ...
    def info(self) -> dict[str, Any]: ...
