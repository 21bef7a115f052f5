"""One blob's way into a registry (OCI distribution spec, "Pushing Blobs").

It is asked for, mounted from another repository of the same registry, or sent: in one request, or in chunks
where the registry names a least size for them (OCI-Chunk-Min-Length), or refuses or breaks the one request. What
broke is taken up where the registry says it stopped. Every answer names the place of the next request anew.
"""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO, TypeVar, cast
from urllib.parse import urldefrag, urlencode, urljoin

from ...errors import DigestMismatch, PyrunError, RegistryError, Unauthorized
from ..content import ContentStore
from ..printable import printable
from ..registry.client import RegistryClient
from ..registry.origin import named
from ..registry.response import Response
from ..registry.retry import LATER, LONGEST_WAIT, doubling, retry_after, scale
from .sending import Cancelled, Outgoing, Part

Report = Callable[[str, int, int], None]  # status, current, total
T = TypeVar("T")

EXISTS, MOUNTED, PUSHED = "exists", "mounted", "pushed"
MAX_SOURCES = 3  # repositories a mount is asked from
CHUNK = 32 << 20  # bytes of a chunk, where the registry asks for no more
LEAST_CHUNK = 1 << 20  # bytes below which a chunk that is refused as too large is not cut again
TRIES = 5  # in a row, without `PROGRESS` between them
PROGRESS = 1 << 20  # bytes that make up for a failure
_LATER = LATER | {500}


class _Again(Exception):
    """A step that may work when it is tried again; ``error`` is raised when that does not help.

    ``wait``    seconds the registry asked for; None: it did not
    ``restart`` the upload is lost, and begun anew
    ``free``    counts as no failure: something else is tried
    """

    def __init__(
        self,
        error: PyrunError,
        *,
        wait: float | None = None,
        restart: bool = False,
        free: bool = False,
    ) -> None:
        super().__init__()
        self.error = error
        self.wait = wait
        self.restart = restart
        self.free = free


class Upload:
    """The blob ``digest`` of ``size`` bytes, on its way from ``content`` by ``client``.

    ``report`` hears "Pushing" and the bytes. Once ``stop`` is set, `run` raises `Cancelled`. Whatever ends it
    early, the registry is asked to forget what it got.
    """

    def __init__(
        self,
        client: RegistryClient,
        content: ContentStore,
        digest: str,
        size: int,
        *,
        report: Report,
        stop: threading.Event,
    ) -> None:
        self.digest = digest
        self.size = size
        self._client = client
        self._content = content
        self._report = report
        self._stop = stop
        self._host = client.endpoint.host
        self._what = f"blob {digest} of {client.name}"
        self._location = ""  # of the upload in hand; "": none
        self._offset = 0  # bytes the registry said it has
        self._least = 0  # bytes that a chunk must have, but for the last
        self._most = 0  # bytes that one request may have; 0: as many as there are
        self._broken = 0  # how often the one request for all broke
        self._lost = 0  # how often the registry forgot what it had

    def run(self, sources: Sequence[str] = ()) -> tuple[str, str]:
        """(`EXISTS`, ""), (`MOUNTED`, the repository it was taken from) or (`PUSHED`, "").

        ``sources``: paths of repositories on this registry that may have the blob. Raises `RegistryError`,
        `Unauthorized`, `DigestMismatch` (damaged on disk), `StorageError`, `Cancelled`.
        """
        done = self.spare(sources)
        return done if done[0] else self.send()

    def spare(self, sources: Sequence[str] = ()) -> tuple[str, str]:
        """`run`, as far as it goes without sending the blob; ("", "") where that is needed."""
        try:
            if self._tried(self._held):
                return EXISTS, ""
            for source in sources[:MAX_SOURCES]:
                if self._mounted(source):
                    return MOUNTED, source
        except BaseException:
            self.forget()
            raise
        return "", ""

    def send(self) -> tuple[str, str]:
        """`run`, for a blob that has to be sent."""
        try:
            with Outgoing(
                self._content,
                self.digest,
                self.size,
                sent=lambda at: self._report("Pushing", at, self.size),
                stop=self._stop,
            ) as blob:
                self._tried(lambda: self._send(blob))
            return PUSHED, ""
        finally:
            self.forget()

    def _held(self) -> bool:
        """Whether the registry has the blob, of the right size. Whatever else it says, sending finds out why."""
        answer = self._ask("HEAD", f"blobs/{self.digest}", {})
        answer.discard()
        if answer.status in _LATER:
            raise self._refused(answer, 0)
        return answer.status == 200 and answer.header("Content-Length") in (None, str(self.size))

    def _mounted(self, source: str) -> bool:
        """Ask for the blob from the repository ``source``. A registry that knows no mounts, or may not do this
        one, begins an upload instead (202), or refuses: then the ordinary way says why."""
        self.forget()
        query = urlencode({"mount": self.digest, "from": source})
        scope = f"repository:{source}:pull"
        try:
            answer = self._ask("POST", f"blobs/uploads/?{query}", {"Content-Length": "0"}, scopes=[scope])
            answer.discard()
        except (_Again, Unauthorized):
            return False
        if answer.status == 201:
            self._check_digest(answer)
            return True
        if answer.status == 202:
            self._begun(answer)
        return False

    def _send(self, blob: Outgoing) -> None:
        """Begin, or go on, and send to the end."""
        if not self._location:
            answer = self._ask("POST", "blobs/uploads/", {"Content-Length": "0"})
            if answer.status != 202:
                raise self._refused(answer, 0)
            answer.discard()
            self._begun(answer)
        chunk = self._chunk()
        if not self._offset and chunk >= self.size:
            self._finish(blob, 0)
            return
        while self._offset < self.size:
            self._send_chunk(blob, self._offset, min(self._offset + chunk, self.size))
        blob.verify()
        self._finish(blob, self.size)

    def _chunk(self) -> int:
        """Bytes of the next request: all, unless the registry wants less."""
        if self._least or self._most or self._broken > 1:
            return max(self._least, self._most or CHUNK)
        return max(self.size, 1)

    def _send_chunk(self, blob: Outgoing, start: int, end: int) -> None:
        headers = {"Content-Range": f"{start}-{end - 1}"}
        answer = self._ask("PATCH", self._location, headers, blob.part(start, end))
        if answer.status not in (202, 204):
            raise self._refused(answer, end - start)
        answer.discard()
        self._location = self._place(answer) or self._location
        said = answer.header("Range")
        self._offset = end if said is None else self._received(said, end)
        if self._offset - start < min(PROGRESS, end - start):
            raise _Again(RegistryError(f"{self._host} keeps little of what it is sent of {self._what}"))

    def _finish(self, blob: Outgoing, start: int) -> None:
        """The last request: the bytes from ``start`` on, and the digest they all should have."""
        mark = "&" if "?" in self._location else "?"
        url = f"{self._location}{mark}{urlencode({'digest': self.digest})}"
        try:
            answer = self._ask("PUT", url, {}, blob.part(start, self.size))
        except _Again:
            # In chunks, some of what breaks each time gets through.
            self._broken += not start
            raise
        if answer.status != 201:
            raise self._refused(answer, self.size - start)
        answer.discard()
        self._location = ""
        self._check_digest(answer)

    def _begun(self, answer: Response) -> None:
        self._location = self._place(answer)
        self._offset = 0
        if not self._location:
            raise RegistryError(f"{self._host} does not say where to send {self._what}")
        least = (answer.header("OCI-Chunk-Min-Length") or "").strip()
        self._least = int(least[:18]) if least.isascii() and least.isdecimal() else 0

    def _place(self, answer: Response) -> str:
        """Where the answer's Location leads, "" where it has none. Never from https to http."""
        location = answer.header("Location")
        if not location:
            return ""
        scheme = answer.origin[0]
        uploads = f"/v2/{self._client.endpoint.path}/blobs/uploads/"
        base = self._location or f"{scheme}://{named(answer.origin)}{uploads}"
        try:
            url = urldefrag(urljoin(base, location)).url
        except ValueError:
            url = location
        if not url.startswith("https://" if scheme == "https" else ("https://", "http://")):
            raise RegistryError(
                f"{self._host} wants {self._what} sent to {printable(url, 200)!r}",
                hint="That is never done. The registry, or a proxy before it, may not be set up for TLS.",
            )
        return url

    def _received(self, said: str, sent: int) -> int:
        """How many bytes the registry has, by its Range header ("0-1023": 1024), at most ``sent``."""
        first, dash, last = said.strip().removeprefix("bytes=").partition("-")
        if first != "0" or not dash or not last.isascii() or not last.isdecimal():
            shown = printable(said, 60)
            error = RegistryError(f"{self._host} says {shown!r} of how much it got of {self._what}")
            raise _Again(error, restart=True)
        # Of nothing at all, too, registries say "0-0".
        count = int(last[:18]) + 1 if last != "0" or sent == 1 else 0
        if count > sent:
            error = RegistryError(f"{self._host} claims to have {count} bytes of {self._what}, of {sent}")
            raise _Again(error, restart=True)
        return count

    def _resume(self) -> None:
        """Find out how far the upload got; have none where the registry does not know it any more."""
        try:
            answer = self._ask("GET", self._location, {})
            answer.discard()
            said = answer.header("Range")
            if answer.status in (200, 204) and said is not None:
                self._offset = self._received(said, self.size)
                self._location = self._place(answer) or self._location
                return
        except _Again as again:
            if not again.restart:
                raise
        self._lost += 1
        self.forget()

    def _tried(self, step: Callable[[], T]) -> T:
        """``step``, until it works, or until `TRIES` in a row got nowhere."""
        failures, reached, resume = 0, 0, False
        while True:
            try:
                if resume and self._location:
                    self._resume()
                return step()
            except _Again as again:
                if self._stop.is_set():
                    raise Cancelled from None
                if self._offset >= reached + PROGRESS:
                    failures, reached = 0, self._offset
                failures += not again.free
                self._lost += again.restart and not again.free
                if failures >= TRIES or self._lost > TRIES:
                    raise again.error from None
                if again.restart:
                    self.forget()
                    reached = 0
                resume = True
                if not again.free:
                    # At once after the first that broke: the registry may just have closed an idle connection.
                    seconds = again.wait or (doubling(failures - 1) if failures > 1 else 0.0)
                    if seconds:
                        count = f"{failures} of {TRIES - 1}"
                        self._client.notice(
                            f"{again.error.message}; trying again in {seconds:.0f} s ({count})"
                        )
                    if self._stop.wait(seconds * scale()):
                        raise Cancelled from None

    def _ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Part | None = None,
        scopes: Sequence[str] = (),
    ) -> Response:
        """One request; `_Again` where the connection failed."""
        if self._stop.is_set():
            raise Cancelled
        if body is not None:
            kind = {"Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
            headers = {**kind, **headers}
        try:
            return self._client.request(
                method, path, headers, cast("BinaryIO | None", body), scopes=scopes, tries=1
            )
        except RegistryError as error:
            cause = error.__cause__
            broke = isinstance(
                cause, (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)
            )
            if not broke or isinstance(cause, (ConnectionRefusedError, ssl.SSLCertVerificationError)):
                raise
            raise _Again(error) from None

    def _refused(self, answer: Response, sent: int) -> Exception:
        """What an answer to a request with ``sent`` bytes means that is not the one hoped for."""
        status = answer.status
        wait = retry_after(answer.header("Retry-After"))
        error = self._client.failure(answer, self._what)
        if status == 413:
            # Too much at once, for the registry or for a proxy before it.
            most = CHUNK if sent > CHUNK else max(LEAST_CHUNK, sent // 4)
            if self._least <= most < sent:
                self._most = most
                return _Again(error, restart=True, free=True)
            return error
        if status in _LATER:
            return error if wait and wait > LONGEST_WAIT else _Again(error, wait=wait)
        if status == 416:
            return _Again(error)
        # Forgotten meanwhile, or changed on the way so that the digest does not fit.
        if status in (400, 404, 410) and self._location:
            return _Again(error, restart=True)
        return error

    def _check_digest(self, answer: Response) -> None:
        said = answer.header("Docker-Content-Digest")
        if said is not None and said != self.digest:
            raise DigestMismatch(
                f"{self._host} took {self._what} and calls it {printable(said, 200)!r}",
                hint="The registry does not keep what it is sent.",
            )

    def forget(self) -> None:
        """Have the registry drop the upload in hand. One that it keeps all the same, it drops in time.

        Nothing is deleted elsewhere: a registry that named some service of the user's network as the place of its
        upload would have it done by who can reach that.
        """
        location, self._location, self._offset = self._location, "", 0
        if location:
            try:
                if self._client.is_home(location):
                    self._client.request("DELETE", location, {}, tries=1).discard()
            except PyrunError:
                return
