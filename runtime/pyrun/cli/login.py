"""``pyrun login``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import NotFound, PyrunError, Unauthorized, UsageError
from . import options as shared
from .output import flush, warn, write
from .session import Session, session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..images.registry.access import Access
    from ..images.registry.login import Login

MAX_PASSWORD = 1 << 20  # bytes; tokens of clouds are long

CompatFile = Annotated[
    str | None,
    typer.Option(
        "--compat-auth-file",
        metavar="FILE",
        help="Use this file, in docker's form, as ~/.docker/config.json",
        click_type=shared.complete_file,
    ),
]


def login(
    context: typer.Context,
    server: Annotated[
        str, typer.Argument(metavar="[SERVER]", autocompletion=shared.complete_registry)
    ] = "docker.io",
    username: Annotated[str | None, typer.Option("-u", "--username", help="User name")] = None,
    password: Annotated[
        str | None,
        typer.Option(
            "-p", "--password", help="Password or token; other users can see it in the process list"
        ),
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input")
    ] = False,
    get_login: Annotated[
        bool, typer.Option("--get-login", help="Only show the user name that is logged in")
    ] = False,
    authfile: Annotated[
        str | None,
        typer.Option(
            "--authfile",
            metavar="FILE",
            help="Keep the credentials in this file (REGISTRY_AUTH_FILE)",
            click_type=shared.complete_file,
        ),
    ] = None,
    compat_auth_file: CompatFile = None,
    cert_dir: shared.CertDir = None,
    tls_verify: shared.TlsVerify = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Also show where the credentials are kept")
    ] = False,
) -> None:
    """Log in to a registry

    SERVER is host[:port], or host/namespace for some of its repositories; docker.io if left out.

    Credentials are kept by the helper that credHelpers or credsStore configures in one of the files below; else in the
    file that podman writes: $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json or, without
    XDG_RUNTIME_DIR, /run/containers/UID/auth.json. They are looked for there, then in
    ~/.config/containers/auth.json and ~/.docker/config.json, so logins of podman and docker count.
    """
    own = session(context)
    if get_login:
        write(own.engine().logged_in(server, authfile=compat_auth_file or authfile) + "\n")
        return
    if password_stdin and password is not None:
        raise UsageError("--password and --password-stdin are mutually exclusive")
    if password_stdin and not username:
        raise UsageError("--password-stdin needs --username")
    if password is not None and not username:
        raise UsageError("--password needs --username")
    access = shared.access(None, authfile, cert_dir, tls_verify)
    result = None
    default = ""
    if username is None:
        result, default = _existing(own, server, access, compat_auth_file)
    if result is None:
        username, password = _credentials(username, password, password_stdin, default)
        result = own.engine().login(server, username, password, access=access, compat_file=compat_auth_file)
    if not result.encrypted and not result.existing:
        warn(
            f"\nWARNING! Your credentials are stored unencrypted in '{result.stored}'.\n"
            "Configure a credential helper to remove this warning. See\n"
            "https://docs.docker.com/go/credential-store/\n"
        )
    if verbose:
        write(f"Used: {result.stored}\n")
    write("Login Succeeded\n")


def _existing(own: Session, server: str, access: Access, compat_file: str | None) -> tuple[Login | None, str]:
    """The login with what is kept already, if it is there and the registry takes it; the user name that is kept."""
    engine = own.engine()
    try:
        name = engine.logged_in(server, authfile=compat_file or access.authfile)
    except NotFound:
        return None, ""
    write(f"Authenticating with existing credentials... [Username: {name}]\n")
    flush()
    try:
        return engine.login(server, access=access, compat_file=compat_file), name
    except Unauthorized as error:
        warn(f"pyrun: {error.message}")
        return None, name


def _credentials(
    username: str | None, password: str | None, password_stdin: bool, default: str
) -> tuple[str, str]:
    from .ask import ask, ask_password

    if not username:
        username = ask(f"Username ({default}): " if default else "Username: ").strip() or default
        if not username:
            raise UsageError("no user name was given")
    if password_stdin:
        return username, _from_stdin()
    if password is not None:
        warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
        return username, password
    return username, ask_password()


def _from_stdin() -> str:
    if sys.stdin is None:
        raise PyrunError("standard input is closed, so there is no password")
    data = sys.stdin.buffer.read(MAX_PASSWORD + 1)
    if len(data) > MAX_PASSWORD:
        raise PyrunError(f"the password is longer than {MAX_PASSWORD >> 20} MiB")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise PyrunError("the password is not UTF-8") from None
