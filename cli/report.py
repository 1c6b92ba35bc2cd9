"""`twinserve report`: what runs reached on classes they never saw, singly and over folds."""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinserve.cli.exit_codes import OK
from twinserve.cli.output import plain, print_json
from twinserve.cli.progress import Working
from twinserve.errors import DataError

if TYPE_CHECKING:
    from twinserve.train.folds import Pooled, PooledChange
    from twinserve.train.held_out import HeldOut

DESCRIPTION = (
    "Say how good trained twins are on their report classes: of one run its figures with 95 % "
    "intervals, of several beside each other. Several seeds or folds of one training also have a "
    "mean, a standard deviation and a pooled figure; runs of different trainings have none. "
    "A run of an earlier version is measured first, which takes its data."
)
EXAMPLES = """
  twinserve report runs/faces
  twinserve report runs/fold1 runs/fold2 runs/fold3 runs/fold4 runs/fold5
  twinserve report runs/fold* --json --out folds.json
  twinserve report runs/faces --again
"""
EXIT_CODES = "0 done; 2 wrong usage, or an error"

# Settings in which the folds and seeds of one training differ (folds may be files or named groups),
# and those that only say where and for how long it ran.
_SPLITS = ("data", "items", "labels", "split_column", "fold", "seed")
_GROUPS = ("train_groups", "calibrate_groups", "report_groups")
_PLACES = ("out", "device", "mini_batch", "max_seconds", "save_seconds", "tensorboard")
_OF_ONE = frozenset((*_SPLITS, *_GROUPS, *_PLACES))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the summary as JSON, too")
    parser.add_argument(
        "--again",
        action="store_true",
        help="measure anew from checkpoint and data, and write report.html anew",
    )
    parser.add_argument(
        "--import-twin",
        metavar="MODULE:CALLABLE",
        help="the code of a run's own twin, which is run when the run is opened",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the summary of some runs."""
    from twinserve.train.folds import pool, pool_changes

    if arguments.import_twin:
        from twinserve.train import own

        own.ask(arguments.import_twin)
    folders: list[Path] = arguments.runs
    twice = [folder for folder in folders if folders.count(folder) > 1]
    if twice:
        raise DataError(f"{twice[0]} is named twice; name each run once")
    folds = [_measured(folder, arguments.again) for folder in folders]
    rows, changes = pool(folds), pool_changes(folds)
    differ = _differing(folders)
    summary = _summary(folders, folds, rows, changes, differ)
    if arguments.out is not None:
        text = json.dumps(plain(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        arguments.out.write_text(text, encoding="utf-8")
    if arguments.json:
        print_json(summary)
    else:
        _print(folders, folds, rows, differ)
        _print_changes(folders, changes, differ)
        if len(folders) == 1:
            print(f"\nopen {folders[0]}/report.html in a browser for curves and the hardest pairs")
    return OK


def _measured(folder: Path, again: bool) -> HeldOut:
    """Read what was measured in a run, or measure it."""
    from twinserve.train.held_out import FILE, HeldOut

    if not again and (folder / FILE).exists():
        return HeldOut.load(folder)
    from twinserve.train import checkpoint
    from twinserve.train.outcome import measure_again

    finished = checkpoint.load(folder)
    if "report" not in finished.results:
        raise DataError(f"the training in {folder} has not ended; wait for it, or train again")
    with Working("measuring") as working:
        working.stage(f"measuring {folder}")
        return measure_again(finished)


def _summary(
    folders: list[Path],
    folds: list[HeldOut],
    rows: tuple[Pooled, ...],
    changes: tuple[PooledChange, ...],
    differ: list[str],
) -> dict[str, Any]:
    figures: list[dict[str, Any]] = [plain(row) for row in rows]
    changed: list[dict[str, Any]] = [plain(row) for row in changes]
    if differ:
        for row in figures:
            row.update(dict.fromkeys(("mean", "standard_deviation", "pooled", "low", "high")))
        for row in changed:
            row.update(dict.fromkeys(("before", "after", "difference", "standard_deviation")))
    return {
        "runs": [
            {"run": folder, "classes": fold.classes, "items": fold.items, "metric": fold.metric}
            for folder, fold in zip(folders, folds, strict=True)
        ],
        "settings_that_differ": differ,
        "figures": figures,
        "changes": changed,
    }


def _differing(folders: list[Path]) -> list[str]:
    """Name the settings in which runs differ, beside those that folds and seeds differ in.

    A run of an earlier version, which kept no settings, counts as one of the others.
    """
    configs = []
    for folder in folders:
        try:
            content = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        configs.append({key: value for key, value in content.items() if key not in _OF_ONE})
    keys = {key for config in configs for key in config}
    return sorted(k for k in keys if any(one.get(k) != configs[0].get(k) for one in configs))


def _print(
    folders: list[Path], folds: list[HeldOut], rows: tuple[Pooled, ...], differ: list[str]
) -> None:
    from twinserve.train.folds import estimates

    if len(folds) == 1:
        (fold,) = folds
        found = estimates(fold)
        of = (
            f"{fold.triplets:,} triplets"
            if fold.triplets
            else f"{fold.judged_pairs:,} judged pairs"
            if fold.judged_pairs
            else f"{fold.classes:,} report classes"
        )
        print(f"{folders[0]}: {fold.items:,} items of {of}\n")
        _columns(
            ("FIGURE", "VALUE", "95 % INTERVAL"),
            [
                (name, _figure(name, one.value), _between(name, one.low, one.high))
                for name, one in found.items()
            ],
        )
        return
    names = tuple(folder.name for folder in folders)
    if differ:
        print(
            f"{len(folds)} runs of different trainings, which no mean joins: they differ in "
            f"{', '.join(differ)}\n"
        )
        _columns(
            ("FIGURE", *names),
            [(row.figure, *(_figure(row.figure, value) for value in row.values)) for row in rows],
        )
        return
    print(f"{len(folds)} runs, {sum(fold.items for fold in folds):,} items\n")
    head = ("FIGURE", "MEAN", "SD", "POOLED", *names)
    _columns(
        head,
        [
            (
                row.figure,
                *(
                    _figure(row.figure, value)
                    for value in (row.mean, row.standard_deviation, row.pooled, *row.values)
                ),
            )
            for row in rows
        ],
    )


def _print_changes(
    folders: list[Path], changes: tuple[PooledChange, ...], differ: list[str]
) -> None:
    """Show the twin as it came beside the trained one, where it was made elsewhere."""
    if not changes:
        return
    print()
    if len(folders) == 1:
        head: tuple[str, ...] = ("FIGURE", "AS IT CAME", "TRAINED", "DIFFERENCE", "95 % INTERVAL")
    elif differ:
        head = ("TRAINED AGAINST AS IT CAME", *(folder.name for folder in folders))
    else:
        head = ("FIGURE", "AS IT CAME", "TRAINED", "DIFFERENCE", "SD")
        head += tuple(folder.name for folder in folders)
    rows: list[tuple[str, ...]] = []
    for row in changes:
        name = row.figure
        means = (_figure(name, row.before), _figure(name, row.after), _signed(name, row.difference))
        if len(folders) == 1:
            (one,) = row.values
            assert one is not None
            known = one.low is not None and one.high is not None
            between = f"{_signed(name, one.low)} to {_signed(name, one.high)}" if known else "-"
            rows.append((name, *means, between))
            continue
        each = tuple(_signed(name, None if one is None else one.value) for one in row.values)
        if differ:
            rows.append((name, *each))
        else:
            spread = _signed(name, row.standard_deviation).removeprefix("+")
            rows.append((name, *means, spread, *each))
    _columns(head, rows)


def _columns(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print cells in columns, the first leaning left and the others right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        first, *others = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if name == "Spearman" else f"{100 * value:.2f} %"


def _signed(name: str, difference: float | None) -> str:
    """Write a difference in the figure's unit; of percentages in points."""
    if difference is None:
        return "-"
    return f"{difference:+z.4f}" if name == "Spearman" else f"{100 * difference:+z.2f}"


def _between(name: str, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    return f"{_figure(name, low).removesuffix(' %')} to {_figure(name, high)}"
