"""`twinserve health`: one question, one word, one exit code; made for container health checks."""

from __future__ import annotations

import argparse

from twinserve.cli import connection
from twinserve.cli.exit_codes import NO, OK
from twinserve.cli.output import print_json
from twinserve.cli.terminal import painted, warn
from twinserve.errors import NotFound, TwinserveError
from twinserve.messages import Health

DESCRIPTION = "Ask a server whether it is serving. No key is needed."
EXAMPLES = """
  twinserve health
  twinserve health --target 127.0.0.1:50051 --timeout 2
  twinserve health --service twinserve.v1.GalleryService
"""
# 2 is reserved by container engines for their own use.
EXIT_CODES = "0 serving; 1 not serving, or nobody answers; 2 wrong usage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--service", default="", metavar="NAME", help="one gRPC service; default: all of them"
    )
    connection.add_arguments(parser)
    parser.set_defaults(timeout=5.0)


def run(arguments: argparse.Namespace) -> int:
    """Ask once."""
    with connection.connect(arguments) as client:
        try:
            answer = client.health(arguments.service)
        except NotFound:
            answer = Health.UNKNOWN
        except TwinserveError as error:
            warn(error.message)
            return NO
    if arguments.json:
        print_json({"target": arguments.target, "service": arguments.service, "status": answer})
    else:
        print(painted(answer.value, "green" if answer is Health.SERVING else "red"))
    return OK if answer is Health.SERVING else NO
