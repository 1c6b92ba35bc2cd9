"""The files with which a client checks its server, and shows who it is itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from twinserve.errors import ConfigError


@dataclass(frozen=True)
class TLS:
    """An encrypted connection, by paths of PEM files; `TLS()` trusts the usual authorities.

    The files are read when a client is made; make a new client for new certificates.

    Args:
        ca: certificates of the authorities that may vouch for the server; None: gRPC's own list.
        cert: the client's certificate chain, where the server asks for one (mutual TLS).
        key: its private key.
        server_name: that the server's certificate must carry, where it is not the target's: behind
            a tunnel or a bare address.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            ConfigError: one cannot be read, or a certificate and a key do not come together.
        """
        if (self.cert is None) != (self.key is None):
            raise ConfigError("TLS takes cert and key together; give both, or neither")
        return grpc.ssl_channel_credentials(
            root_certificates=_read("ca", self.ca),
            private_key=_read("key", self.key),
            certificate_chain=_read("cert", self.cert),
        )


def _read(name: str, path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{name} of TLS cannot be read ({error}); name a PEM file", field=f"tls.{name}"
        ) from error
