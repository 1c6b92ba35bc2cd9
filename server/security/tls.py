"""TLS of both ports, with certificates that may change while the server serves.

A new connection gets what was read last; what is open stays open. A certificate, key or CA that
cannot be used changes nothing, and the log says so.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from twinserve.errors import ConfigError
from twinserve.server.config import TlsFiles
from twinserve.server.security.watched_files import WatchedFiles

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Read:
    for_grpc: grpc.ServerCertificateConfiguration
    for_http: ssl.SSLContext


class Tls:
    """The credentials of both ports, kept true to their files.

    Args:
        files: in PEM.

    Raises:
        ConfigError: one of them cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.watched = WatchedFiles(files.paths, self._reload)
        self._read = _read(files)
        self.http = _context(files)
        # Called at each handshake, whether or not the client names a server.
        self.http.sni_callback = self._take_newest

    @property
    def asks_clients(self) -> bool:
        """Whether clients must show a certificate."""
        return self._files.client_ca is not None

    def grpc(self) -> grpc.ServerCredentials:
        """Return the credentials of a gRPC port, which asks for the newest at each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._read.for_grpc,
            lambda: self._read.for_grpc,
            require_client_authentication=self.asks_clients,
        )

    def _take_newest(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        connection.context = self._read.for_http

    def _reload(self) -> None:
        try:
            self._read = _read(self._files)
        except ConfigError as error:
            log.error("%s; new connections get the certificate that was read before", error)
            return
        log.info("new connections get the certificate of %s as it is now", self._files.certificate)


def _read(files: TlsFiles) -> _Read:
    # Checked by OpenSSL first: gRPC's core says of bad ones only that they are bad.
    context = _context(files)
    try:
        chain = files.key.read_bytes(), files.certificate.read_bytes()
        ca = None if files.client_ca is None else files.client_ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
    return _Read(grpc.ssl_server_certificate_configuration([chain], ca), context)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with _telling("--tls-cert and --tls-key", files.certificate, files.key):
        # An encrypted key would be asked for on the terminal.
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    if files.client_ca is not None:
        # Probes have none to show: those who ask for more than health are refused by the app.
        context.verify_mode = ssl.CERT_OPTIONAL
        # A session that is taken up again would not be checked against a CA that has changed.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        with _telling("--tls-client-ca", files.client_ca):
            context.load_verify_locations(files.client_ca)
    return context


def _no_password() -> str:
    raise ConfigError("the key is encrypted; give --tls-key a key without a password")


@contextlib.contextmanager
def _telling(flags: str, *paths: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        names = " and ".join(map(str, paths))
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError(
            f"{names} cannot be used ({reason}); give {flags} files in PEM that belong together"
        ) from None
