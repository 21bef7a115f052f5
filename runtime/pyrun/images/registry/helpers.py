"""Credential helpers: programs ``docker-credential-NAME`` that keep secrets in the keychain of a desktop or cloud
(the protocol of docker-credential-helpers: a verb as the argument, the rest over stdin and stdout)."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import time
from typing import Any

from ...errors import ConfigError
from ..printable import printable
from .credentials import Credentials

_NAME = re.compile(r"[A-Za-z0-9._-]+")
TIMEOUT = 60.0  # seconds: a keychain may have to ask its owner
ENVIRONMENT = "PYRUN_HELPER_TIMEOUT"
TOKEN = "<token>"  # the user name that says that the secret is an identity token
MAX_ANSWER = 4 << 20  # bytes: a list may be long
_ABSENT = "credentials not found in native keychain"


class Helper:
    """The program that ``configured`` (a file) names. Raises `ConfigError` for what is no name of one."""

    def __init__(self, name: str, configured: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{configured}: {printable(name, 60)!r} is not the name of a credential helper",
                hint="It is what follows docker-credential- in the program's name: letters, digits, '.', '_', '-'.",
            )
        self.program = f"docker-credential-{name}"
        self.configured = configured

    def get(self, server: str) -> Credentials | None:
        """What the helper keeps for ``server``; None if nothing. Raises `ConfigError` where it fails."""
        answer = self._run("get", server, server)
        if answer is None:
            return None
        entry = self._parsed("get", answer)
        username, secret = entry.get("Username"), entry.get("Secret")
        if not isinstance(username, str) or not isinstance(secret, str):
            raise self._nonsense("get")
        if username == TOKEN:
            return Credentials(identity_token=secret, source=self.program)
        return Credentials(username, secret, source=self.program) or None

    def store(self, server: str, username: str, secret: str) -> None:
        """Keep ``secret``; ``username`` `TOKEN` for an identity token. Raises `ConfigError`."""
        entry = {"ServerURL": server, "Username": username, "Secret": secret}
        self._run("store", json.dumps(entry), server)

    def erase(self, server: str) -> bool:
        """Forget it; False if there was nothing. Raises `ConfigError`."""
        return self._run("erase", server, server) is not None

    def list(self) -> dict[str, str]:
        """User names by server. Raises `ConfigError`."""
        entries = self._parsed("list", self._run("list", "", "") or b"{}")
        return {str(server): str(user) for server, user in entries.items()}

    def _run(self, verb: str, text: str, server: str) -> bytes | None:
        """The answer; None where the helper says that it has no such credentials."""
        try:
            done = _run([self.program, verb], text.encode(), _timeout())
        except FileNotFoundError:
            raise ConfigError(
                f"there is no program {self.program}, which {self.configured} names as credential helper",
                hint="Install it, or take it out of that file.",
            ) from None
        except OSError as error:
            raise ConfigError(
                f"the credential helper {self.program} can't be run: {error.strerror}"
            ) from None
        except subprocess.TimeoutExpired:
            # Not chained: the exception holds what was sent.
            raise ConfigError(
                f"the credential helper {self.program} did not answer in {_timeout():.0f} s",
                hint="Does its keychain wait to be unlocked?",
            ) from None
        if len(done.stdout) > MAX_ANSWER or len(done.stderr) > MAX_ANSWER:
            raise ConfigError(
                f"the credential helper {self.program} answered {verb!r} with more than {MAX_ANSWER >> 20} MiB",
                hint=f"{self.configured} names it.",
            )
        if done.returncode == 0:
            return done.stdout
        said = (done.stdout.strip() or done.stderr.strip()).decode("utf-8", "replace")
        if _ABSENT in said:
            return None
        about = f" for {server}" if server else ""
        raise ConfigError(
            f"the credential helper {self.program} failed to {verb} the credentials{about}:"
            f" {printable(said, 300) or f'exit code {done.returncode}'}",
            hint=f"{self.configured} names it.",
        )

    def _parsed(self, verb: str, answer: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(answer)
        except (ValueError, RecursionError):
            raise self._nonsense(verb) from None
        if not isinstance(entry, dict):
            raise self._nonsense(verb)
        return entry

    def _nonsense(self, verb: str) -> ConfigError:
        # Its answer may hold a secret, so it is not quoted.
        return ConfigError(
            f"the credential helper {self.program} answered {verb!r} with something else than credentials",
            hint=f"{self.configured} names it.",
        )


def _run(words: list[str], data: bytes, timeout: float) -> subprocess.CompletedProcess[bytes]:
    """As `subprocess.run`, but a program that says more than `MAX_ANSWER` is ended there, a byte behind it."""
    end = time.monotonic() + timeout
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdin is not None
        said = {process.stdout: bytearray(), process.stderr: bytearray()}
        try:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            for stream in said:
                assert stream is not None
                selector.register(stream, selectors.EVENT_READ)
            over = False
            while selector.get_map() and not over:
                for key, _ in selector.select(_left(words, end, timeout)):
                    if key.fileobj is process.stdin:
                        try:
                            data = data[os.write(key.fd, data) :]
                        except BrokenPipeError:
                            data = b""
                        if not data:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                        continue
                    output = said[key.fileobj]  # type: ignore[index]
                    piece = os.read(key.fd, min(65536, MAX_ANSWER + 1 - len(output)))
                    output += piece
                    if not piece:
                        selector.unregister(key.fileobj)
                    elif len(output) > MAX_ANSWER:
                        process.kill()
                        over = True
            process.wait(_left(words, end, timeout))
        except BaseException:
            process.kill()
            raise
    out, error = said.values()
    return subprocess.CompletedProcess(words, process.returncode, bytes(out), bytes(error))


def _left(words: list[str], end: float, timeout: float) -> float:
    """Seconds until ``end``. Raises TimeoutExpired where there are none."""
    left = end - time.monotonic()
    if left <= 0:
        raise subprocess.TimeoutExpired(words, timeout)
    return left


def _timeout() -> float:
    try:
        return float(os.environ[ENVIRONMENT])
    except (KeyError, ValueError):
        return TIMEOUT
