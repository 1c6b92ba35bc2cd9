"""`twinserve serve`: twins over gRPC, until SIGTERM; flags and work are the server's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from twinserve import settings
from twinserve.cli.exit_codes import OK
from twinserve.cli.terminal import warn
from twinserve.errors import ConfigError

DESCRIPTION = (
    "Serve twins. Says `twinserve SERVING grpc=HOST:PORT http=HOST:PORT` on standard output once "
    "it is ready; logs go to standard error (--log-level warning makes them fewer)."
)
EXAMPLES = """
  twinserve serve --model twin.onnx --data-dir data
  twinserve serve --model faces=faces.onnx --model signs=signs.onnx --data-dir data
  twinserve serve --model twin.onnx --data-dir data --grpc-port 0 --http-port 0
  twinserve serve --config serve.toml
  TWINSERVE_GRPC_PORT=6000 twinserve serve --config serve.toml --print-config
"""
EXIT_CODES = "0 stopped by SIGTERM or Ctrl-C with all work done; 2 wrong usage, or cannot start"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the server's flags."""
    from twinserve.server import config

    config.add_arguments(parser)
    settings.add_arguments(parser)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags, and take from environment and file what they leave open."""
    if argv and argv[0].endswith(".onnx"):
        raise ConfigError(f"twins are named by a flag: twinserve serve --model {argv[0]} …")
    from twinserve.server import config

    return settings.parse(parser, argv, needed=config.NEEDED)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    from twinserve.server import config

    for warning in arguments.settings_warnings:
        warn(warning)
    try:
        made = config.from_arguments(arguments)
    except ConfigError as error:
        raise settings.with_origins(error, arguments.settings) from error
    if arguments.print_config:
        print(settings.as_toml(arguments.settings), end="")
        return OK
    from twinserve.server.__main__ import run as serve

    return serve(made)
