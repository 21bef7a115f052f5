"""A headless browser (Debian's chromium) with no network, driven through a pipe (Chrome DevTools Protocol).

with Browser(tmp_path) as browser:
    page = browser.open(path)          # a file
    page.run("document.title")         # the value, as JSON has it
    page.errors, page.requests
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 30


def command() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("needs chromium (package chromium)")
    return found


class Browser:
    """One browser process with a profile of its own below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._rest = b""

    def __enter__(self) -> Browser:
        read_theirs, self._write = os.pipe()
        self._read, write_theirs = os.pipe()
        argv = [
            command(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={self._directory}/profile",
            "--remote-debugging-pipe",
            "about:blank",
        ]

        # The protocol's pipe is fds 3 and 4 of the browser.
        script = 'exec "$@" 3<&"$IN" 4>&"$OUT"'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, "browser", *argv],
            env={
                **os.environ,
                "IN": str(read_theirs),
                "OUT": str(write_theirs),
                "HOME": str(self._directory),
                "XDG_CONFIG_HOME": str(self._directory),
                "XDG_CACHE_HOME": str(self._directory),
            },
            pass_fds=(read_theirs, write_theirs),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self._directory / "browser.log", "wb"),
        )
        os.close(read_theirs)
        os.close(write_theirs)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, AssertionError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def send(self, method: str, session: str = "", **params: Any) -> Any:
        """The result of one command of the protocol."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._events.append(answer)

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0, f"the browser did not answer: {what}"
            if select.select([self._read], [], [], left)[0]:
                data = os.read(self._read, 1 << 20)
                assert data, (self._directory / "browser.log").read_text(errors="replace")
                self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def wait(self, method: str, session: str) -> dict[str, Any]:
        """The parameters of the first such event, which may have come already."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            for at, event in enumerate(self._events):
                if event.get("method") == method and event.get("sessionId") == session:
                    del self._events[at]
                    found: dict[str, Any] = event["params"]
                    return found
            self._events.append(self._next(deadline, method))

    def events(self, method: str, session: str) -> list[dict[str, Any]]:
        """The parameters of all such events so far."""
        return [
            event["params"]
            for event in self._events
            if event.get("method") == method and event.get("sessionId") == session
        ]

    def open(
        self, path: Path, fragment: str = "", *, width: int = 1280, height: int = 1000, dark: bool = False
    ) -> Page:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable", session)
        self.send(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", session, features=[scheme])
        self.send("Page.navigate", session, url=f"{path.as_uri()}{fragment}")
        self.wait("Page.loadEventFired", session)
        return Page(self, session)


class Page:
    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def run(self, script: str) -> Any:
        """The value of an expression in the page. What the page's policy forbids to scripts is allowed to this one."""
        done = self._browser.send(
            "Runtime.evaluate", self._session, expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key, as from a keyboard; ``code`` is its Windows key code."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        for kind in ("keyDown", "keyUp"):
            self._browser.send(
                "Input.dispatchKeyEvent",
                self._session,
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Exceptions, console messages and what the browser logged, violations of the page's policy among it."""
        found = []
        for method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            found += self._browser.events(method, self._session)
        return found

    @property
    def requests(self) -> list[str]:
        """Every URL asked for."""
        return [
            event["request"]["url"]
            for event in self._browser.events("Network.requestWillBeSent", self._session)
        ]

    @property
    def dialogs(self) -> list[dict[str, Any]]:
        return self._browser.events("Page.javascriptDialogOpening", self._session)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of the page, for a person to look at."""
        data = self._browser.send(
            "Page.captureScreenshot", self._session, format="png", captureBeyondViewport=whole
        )
        path.write_bytes(base64.b64decode(data["data"]))

    def pdf_pages(self) -> int:
        data = base64.b64decode(self._browser.send("Page.printToPDF", self._session)["data"])
        return data.count(b"/Type /Page\n") + data.count(b"/Type /Page ")
