"""Certificates for tests, made by the openssl command: on elliptic curves, quickly."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import grpc

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


class Certificates:
    """CAs, and what they signed, in one folder: NAME.pem and NAME.key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def ca(self, name: str) -> None:
        """Make a CA."""
        made = ("-keyout", self.key(name), "-out", self.certificate(name), "-days", "2")
        self._openssl("req", "-x509", *_CURVE, *made, "-subj", f"/CN={name}")

    def sign(self, name: str, ca: str) -> None:
        """Make a certificate for this machine, signed by a CA."""
        asked = self.folder / f"{name}.csr"
        made = ("-keyout", self.key(name), "-out", asked)
        self._openssl("req", *_CURVE, *made, "-subj", f"/CN={name}", "-addext", _NAMES)
        signer = ("-CA", self.certificate(ca), "-CAkey", self.key(ca), "-CAcreateserial")
        out = ("-out", self.certificate(name), "-days", "2", "-copy_extensions", "copy")
        self._openssl("x509", "-req", "-in", asked, *signer, *out)

    def put(self, name: str, at: str) -> None:
        """Copy a certificate and its key to another name."""
        shutil.copy(self.certificate(name), self.certificate(at))
        shutil.copy(self.key(name), self.key(at))

    def channel_credentials(self, ca: str, client: str = "") -> grpc.ChannelCredentials:
        own = (self.key(client), self.certificate(client)) if client else ()
        return grpc.ssl_channel_credentials(
            self.certificate(ca).read_bytes(), *(path.read_bytes() for path in own)
        )

    def context(self, ca: str, client: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.certificate(ca))
        if client:
            context.load_cert_chain(self.certificate(client), self.key(client))
        return context

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
