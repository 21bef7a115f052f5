"""CAs and certificates for tests, made by openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def openssl(*args: str, data: bytes | None = None) -> bytes:
    return subprocess.run(["openssl", *args], input=data, check=True, capture_output=True).stdout


class Authority:
    """A CA in a directory of its own: ``certificate`` is its file."""

    def __init__(self, directory: Path, name: str = "Test CA") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("needs openssl (package openssl)")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.certificate = directory / "ca.crt"
        self._key = directory / "ca.key"
        openssl(
            *"req -x509 -newkey rsa:2048 -nodes -days 2 -addext basicConstraints=critical,CA:TRUE".split(),
            *("-subj", f"/CN={name}", "-out", str(self.certificate), "-keyout", str(self._key)),
        )

    def issue(self, name: str, *names: str) -> tuple[Path, Path]:
        """(certificate, key) for ``name``, which ``names`` ("DNS:...", "IP:...") stand beside."""
        certificate, key = self.directory / f"{name}.cert", self.directory / f"{name}.key"
        request = openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", str(key)),
            *(("-addext", f"subjectAltName={','.join(names)}") if names else ()),
        )
        signed = openssl(
            *("x509", "-req", "-days", "2", "-CA", str(self.certificate), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-copy_extensions", "copy"),
            data=request,
        )
        certificate.write_bytes(signed)
        return certificate, key

    def trusting(self) -> ssl.SSLContext:
        """A client's context that believes this CA alone."""
        return ssl.create_default_context(cafile=str(self.certificate))
