"""Options that several commands share, and how a shell completes their values."""

from __future__ import annotations

from typing import Annotated, Any

import click
import typer

from .access import access as access
from .session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..engine import Engine


class _PathText(click.types.StringParamType):
    """A path kept as text. Nothing is checked here: the engine opens it and says what is wrong."""

    name = "path"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=self.kind)]


complete_file = _PathText("file")
complete_directory = _PathText("dir")


def _from_store(find: Callable[[Engine], list[str]]) -> Callable[[click.Context], list[str]]:
    """A completion that reads the store; silent where that fails, for a prompt is no place for errors."""

    def complete(ctx: click.Context) -> list[str]:
        own = Session()
        given = ctx.find_root().params
        own.root, own.state, own.config = given.get("root"), given.get("state"), given.get("config")
        try:
            return find(own.engine())
        except Exception:
            return []

    return complete


def _image_names(engine: Engine) -> list[str]:
    return [image.familiar for image in engine.images()]


def _container_names(engine: Engine) -> list[str]:
    return [container.name for container in engine.containers(all=True)]


complete_image = _from_store(_image_names)
complete_container = _from_store(_container_names)


def complete_any(ctx: click.Context) -> list[str]:
    return [*complete_container(ctx), *complete_image(ctx)]


def complete_registry() -> list[str]:
    """The registries that credentials are kept for."""
    from ..images.registry.login import known

    try:
        return known()
    except Exception:
        return []


def complete_driver() -> list[str]:
    """The installed storage drivers, usable or not."""
    from ..storage.plugins import Plugins

    try:
        return [found.name for found in Plugins().drivers()]
    except Exception:
        return []


def one_of(*values: str) -> Callable[[], list[str]]:
    """Completes to fixed words; which are valid is for the engine to say."""
    return lambda: list(values)


Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only show IDs")]
NoTrunc = Annotated[bool, typer.Option("--no-trunc", help="Don't cut long values")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="'table', 'table TEMPLATE', 'json' (an object a line) or a Go template",
        autocompletion=one_of("json", "table"),
    ),
]
DocumentFormat = Annotated[
    str,
    typer.Option(
        "-f", "--format", metavar="FORMAT", help="'json' or a Go template", autocompletion=one_of("json")
    ),
]
PlatformName = Annotated[
    str | None,
    typer.Option(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="Platform to choose where an image has several (DOCKER_DEFAULT_PLATFORM)",
    ),
]
ProgressKind = Annotated[
    str,
    typer.Option(
        "--progress",
        metavar="KIND",
        help="'tty' (a bar a layer), 'plain' (a line a change), 'json' (an object a line), 'none', or 'auto':"
        " tty on a terminal, else plain",
        autocompletion=one_of("auto", "json", "none", "plain", "tty"),
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "-c",
        "--change",
        metavar="INSTRUCTION",
        help="Dockerfile instruction for the image's settings, as 'CMD [\"sh\"]' or 'ENV A=1'",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option("--storage", metavar="DRIVER", help="Storage driver to use"),
]
StorageOpt = Annotated[
    list[str] | None,
    typer.Option("--storage-opt", metavar="DRIVER.OPTION=VALUE", help="Set an option of a storage driver"),
]
Creds = Annotated[
    str | None,
    typer.Option(
        "--creds",
        metavar="USERNAME[:PASSWORD]",
        help="Credentials for the registry, in place of those stored; the password is asked for if left out",
    ),
]
AuthFile = Annotated[
    str | None,
    typer.Option(
        "--authfile",
        metavar="FILE",
        help="Read credentials from this file only (REGISTRY_AUTH_FILE)",
        click_type=complete_file,
    ),
]
CertDir = Annotated[
    str | None,
    typer.Option(
        "--cert-dir",
        metavar="DIR",
        help="Directory with the registry's CAs (*.crt) and client certificates (*.cert, *.key)",
        click_type=complete_directory,
    ),
]
TlsVerify = Annotated[
    bool | None,
    typer.Option(
        "--tls-verify",
        help="Insist on HTTPS and a valid certificate; with =false on neither. Without it registries.conf decides",
    ),
]
