"""`twinserve key`: the keys that `twinserve serve --keys FILE` lets in."""

from __future__ import annotations

import argparse
import datetime
import math
import sys
import time
from pathlib import Path

from twinserve.cli.exit_codes import OK
from twinserve.cli.output import print_json, print_table
from twinserve.errors import ConfigError

DESCRIPTION = (
    "Make, list and revoke the keys of a server. The file holds a hash of each key, never the key, "
    "which is printed once, when it is made. A running server reads the file again when it changes."
)
EXAMPLES = """
  twinserve key new shop --keys keys.toml --role write --gallery 'shop-*' --rate 50
  twinserve key new ops --keys keys.toml --role admin --days 90
  twinserve key new prometheus --keys keys.toml --no-galleries
  twinserve key list --keys keys.toml
  twinserve key revoke shop --keys keys.toml
  twinserve key list --keys keys.toml --json
"""
EXIT_CODES = "0 done; 2 wrong usage, or a file that cannot be read, changed or written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key, add its hash to the file, print it once")
    listing = actions.add_parser("list", help="the keys of the file, with what they may do")
    revoke = actions.add_parser("revoke", help="take a key out of the file")
    for action in (new, listing, revoke):
        action.add_argument(
            "--keys", type=Path, required=True, metavar="FILE", help="the file of keys"
        )
    for action in (new, listing, revoke):
        action.add_argument("--json", action="store_true", help="print one JSON document")
    for action in (new, revoke):
        action.add_argument("id", metavar="ID", help="of the key: 1 to 32 of a-z 0-9 -")
    new.add_argument(
        "--role",
        choices=("read", "write", "admin"),
        default="read",
        help="read embeds and searches, write also enrolls and removes, admin also makes and "
        "deletes galleries, backs up and loads models (%(default)s)",
    )
    reach = new.add_mutually_exclusive_group()
    reach.add_argument(
        "--no-galleries",
        action="store_true",
        help="it reaches none: for Prometheus, and for those that only embed and compare",
    )
    reach.add_argument(
        "--gallery",
        action="append",
        metavar="NAME",
        help="a gallery or alias that it reaches, or the beginning of names and a *; repeat for "
        "several; without it: all",
    )
    new.add_argument("--rate", type=float, default=0.0, metavar="CALLS", help="most calls a second")
    new.add_argument(
        "--burst", type=float, default=0.0, metavar="CALLS", help="most calls at once (as rate)"
    )
    new.add_argument("--days", type=float, metavar="DAYS", help="for which it is valid (for ever)")
    new.add_argument("--note", default="", help="whose it is and what for, for people")


def run(arguments: argparse.Namespace) -> int:
    """Do the action."""
    match arguments.action:
        case "new":
            _new(arguments)
        case "list":
            _list(arguments.keys, arguments.json)
        case "revoke":
            from twinserve.server.security import keys

            keys.revoke(arguments.keys, arguments.id)
            if arguments.json:
                print_json({"id": arguments.id, "revoked": True})
            print(f"{arguments.id} is no key of {arguments.keys} any more", file=sys.stderr)
    return OK


def _new(arguments: argparse.Namespace) -> None:
    from twinserve.server.security import keys
    from twinserve.server.security.access import Role

    expires = None
    if arguments.days is not None:
        if not 0 < arguments.days <= 36_500:
            raise ConfigError(f"--days is {arguments.days:g}; give a number above 0")
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=arguments.days)
    key = keys.make(
        arguments.keys,
        arguments.id,
        Role[arguments.role.upper()],
        galleries=() if arguments.no_galleries else arguments.gallery,
        rate=arguments.rate,
        burst=arguments.burst,
        expires=expires,
        note=arguments.note,
    )
    if arguments.json:
        print_json({"id": arguments.id, "key": key})
    else:
        # Alone on standard output, so that $(…) is the key.
        print(key)
    print(
        f"{arguments.keys} has its hash; nobody can show this key again. A server that runs takes "
        "it within two seconds",
        file=sys.stderr,
    )


def _list(path: Path, as_json: bool) -> None:
    from twinserve.server.security import keys

    found = keys.read(path)
    if as_json:
        print_json(
            [
                {
                    "id": key.id,
                    "role": key.role.name.lower(),
                    "galleries": None if key.galleries is None else list(key.galleries),
                    "rate": key.rate or None,
                    "burst": key.burst or None,
                    "expires": _time(key.expires),
                    "note": key.note,
                }
                for key in found
            ]
        )
        return
    print_table(
        ("id", "role", "galleries", "rate", "burst", "expires", "note"),
        [
            (
                key.id,
                key.role.name.lower(),
                "all" if key.galleries is None else " ".join(key.galleries) or "none",
                f"{key.rate:g}" if key.rate else "-",
                f"{key.burst:g}" if key.burst else "-",
                _when(key.expires),
                key.note,
            )
            for key in found
        ],
    )


def _time(seconds: float) -> datetime.datetime | None:
    return None if math.isinf(seconds) else datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _when(seconds: float) -> str:
    found = _time(seconds)
    if found is None:
        return "never"
    return f"{found:%Y-%m-%d %H:%M}{' (expired)' if seconds <= time.time() else ''}"
