"""`twinserve data`: what a data set holds, and what of it would spoil a training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from twinserve.cli.exit_codes import NO, OK
from twinserve.cli.output import print_fields, print_json
from twinserve.cli.progress import Working
from twinserve.cli.terminal import painted
from twinserve.errors import DataError

if TYPE_CHECKING:
    from twinserve.train.config import TrainConfig
    from twinserve.train.findings import Checked

DESCRIPTION = (
    "Check a data set before a training: kind, classes, counts, broken files by name, duplicates "
    "within and across the parts of the split, contradicting labels, labels outside their range, "
    "texts that are cut, batches that cannot be formed, and whether the held-out classes carry the "
    "evidence for the false accept rates that are asked for. The settings are those of `twinserve "
    "train`, which refuses what stops here. docs/data.md shows every form of data."
)
EXAMPLES = """
  twinserve data check photos/
  twinserve data check questions.csv --set label_column=intent
  twinserve data check pairs.csv --set form=pairs score_range=0..5
  twinserve data check photos/ --set image_size=64 false_accept_rates=0.01,0.001 --json
"""
EXIT_CODES = "0 nothing would spoil a training; 1 something would; 2 wrong usage, or an error"

_SHOWN_ITEMS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the action and its arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="say what a data set holds, and what is wrong with it")
    check.add_argument("data", metavar="PATH", help="a folder or zip, a CSV, or vectors")
    check.add_argument("--config", metavar="FILE", help="TOML file, or a preset, as of train")
    check.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings above the file's; without a twin, one that takes such data is assumed",
    )
    check.add_argument("--json", action="store_true", help="print all that was found as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check, and tell by the exit code whether a training may begin."""
    from twinserve.train.check import examine

    config = _config(arguments)
    with Working(f"reading {arguments.data}"):
        checked = examine(config)
    if arguments.json:
        print_json(checked.to_dict())
    else:
        _show(checked)
    return OK if checked.good else NO


def _config(arguments: argparse.Namespace) -> TrainConfig:
    from twinserve.train.config import TWINS, load_config
    from twinserve.train.forms import kind_of

    overrides = [*arguments.set, f"data={arguments.data}"]
    config = load_config(arguments.config, overrides)
    said = arguments.config or any(one.split("=")[0].strip() == "twin" for one in arguments.set)
    if said:
        return config
    try:
        modality = kind_of(config).modality
    except DataError:
        return config  # the check says it, among the rest
    if modality == config.modality:
        return config
    return load_config(None, [*overrides, f"twin={TWINS[modality][0]}"])


def _show(checked: Checked) -> None:
    print_fields(list(_fields(checked.facts)))
    for finding in checked.findings:
        word = painted("STOPS", "red") if finding.stops else "note"
        print(f"\n{word}  {finding.message}")
        for item in finding.items[:_SHOWN_ITEMS]:
            print(f"       {item:.160}")
        if len(finding.items) > _SHOWN_ITEMS:
            print(f"       … and {len(finding.items) - _SHOWN_ITEMS} more (--json has all)")
    stops = sum(finding.stops for finding in checked.findings)
    print(
        "\nnothing here would spoil a training"
        if checked.good
        else f"\na training would be spoiled by what STOPS above ({stops})"
    )


def _fields(facts: dict[str, Any]) -> list[tuple[str, object]]:
    """Word the facts, one a line."""
    return [
        (name.replace("_", " "), _worded(value)) for name, value in facts.items() if value != []
    ]


def _worded(value: object) -> object:
    if isinstance(value, dict):
        if all(isinstance(one, dict) for one in value.values()):
            return "; ".join(f"{name}: {_worded(one)}" for name, one in value.items())
        return ", ".join(f"{name.replace('_', ' ')} {_worded(v)}" for name, v in value.items())
    if isinstance(value, list):
        more = f" … and {len(value) - _SHOWN_ITEMS} more" if len(value) > _SHOWN_ITEMS else ""
        return ", ".join(str(one) for one in value[:_SHOWN_ITEMS]) + more
    return f"{value:,.6g}" if isinstance(value, float) else "-" if value is None else str(value)
