"""`twinserve serve`: twins over gRPC, until SIGTERM; flags and work are the server's own."""

from __future__ import annotations

import argparse

DESCRIPTION = (
    "Serve twins. Says `twinserve SERVING grpc=HOST:PORT http=HOST:PORT` on standard output once "
    "it is ready; logs go to standard error (--log-level warning makes them fewer)."
)
EXAMPLES = """
  twinserve serve --model twin.onnx --data-dir data
  twinserve serve --model faces=faces.onnx --model signs=signs.onnx --data-dir data
  twinserve serve --model twin.onnx --data-dir data --grpc-port 0 --http-port 0
"""
EXIT_CODES = "0 stopped by SIGTERM or Ctrl-C with all work done; 2 wrong usage, or cannot start"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the server's flags."""
    from twinserve.server import config

    config.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    from twinserve.server import config
    from twinserve.server.__main__ import run as serve

    return serve(config.from_arguments(arguments))
