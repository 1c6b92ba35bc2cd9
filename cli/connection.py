"""The flags with which a verb finds its server, and the client that they give."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from twinserve.client import TLS, Client
from twinserve.errors import ConfigError

DEFAULT_TARGET = "127.0.0.1:50051"
# A person who mistyped an address must not wait for the whole deadline to hear of it.
_UNAVAILABLE_FOR = 3.0


def add_arguments(parser: argparse.ArgumentParser, *, json: bool = True) -> None:
    """Add --target, --api-key, --tls and its files, --timeout, --priority, and --json.

    A verb that prints no results leaves `json` out.
    """
    group = parser.add_argument_group("server")
    group.add_argument(
        "--target",
        default=os.environ.get("TWINSERVE_TARGET") or DEFAULT_TARGET,
        metavar="HOST:PORT",
        help="the server's gRPC address (%(default)s)",
    )
    group.add_argument(
        "--api-key",
        default=os.environ.get("TWINSERVE_API_KEY") or None,
        metavar="KEY",
        help="better given as TWINSERVE_API_KEY: other users can read a command's arguments",
    )
    group.add_argument(
        "--tls",
        action="store_true",
        default=bool(os.environ.get("TWINSERVE_CLIENT_TLS")),
        help="connect with TLS, as each of the next three flags does; or TWINSERVE_CLIENT_TLS=1",
    )
    for flag, text in (
        ("--tls-ca", "certificates of who vouches for the server, in PEM (the public CAs)"),
        ("--tls-cert", "a certificate to show, in PEM, where the server asks for one"),
        ("--tls-key", "its key, in PEM"),
    ):
        variable = "TWINSERVE_CLIENT_" + flag.removeprefix("--").replace("-", "_").upper()
        default = os.environ.get(variable)
        group.add_argument(
            flag,
            type=Path,
            default=Path(default) if default else None,
            metavar="FILE",
            help=f"{text}; or {variable}",
        )
    group.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="for each call, retries included (%(default)s)",
    )
    group.add_argument(
        "--priority",
        choices=("high", "normal", "low"),
        help="which calls the server runs first when it is busy (normal)",
    )
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON document")


def connect(arguments: argparse.Namespace) -> Client:
    """Return a client of the server that was named.

    Raises:
        ConfigError: a timeout of nothing, a target without a port, or a file of TLS that cannot be
            read.
    """
    if not arguments.timeout > 0:
        raise ConfigError(f"--timeout is {arguments.timeout}; give a number of seconds above 0")
    if ":" not in arguments.target:
        # gRPC would take 443, where a server of ours hardly is.
        raise ConfigError(
            f"--target is {arguments.target!r}, without a port; give HOST:PORT, such as "
            f"{DEFAULT_TARGET}"
        )
    return Client(
        arguments.target,
        api_key=arguments.api_key,
        tls=_tls(arguments),
        timeout=arguments.timeout,
        unavailable_for=min(_UNAVAILABLE_FOR, arguments.timeout),
        priority=arguments.priority,
    )


def _tls(arguments: argparse.Namespace) -> TLS | None:
    ca, cert, key = arguments.tls_ca, arguments.tls_cert, arguments.tls_key
    return TLS(ca=ca, cert=cert, key=key) if arguments.tls or ca or cert or key else None
