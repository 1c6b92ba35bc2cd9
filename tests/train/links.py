"""A small set of judged vectors for the tests: pairs, scored ones, and triplets of subjects."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.train import questions
from twinserve.train.checkpoint import Run
from twinserve.train.config import TrainConfig
from twinserve.train.loop import train

SUBJECTS, EACH = 90, 4
Table = list[tuple[str, ...]]


def write(folder: Path) -> Path:
    """Write vectors whose first half tells the subject and whose other is noise, and tables."""
    generator = np.random.default_rng(0)
    subjects = generator.normal(size=(SUBJECTS, 1, 8)).repeat(EACH, axis=1)
    subjects += 0.2 * generator.normal(size=subjects.shape)
    noise = 2.0 * generator.normal(size=subjects.shape)
    vectors = np.concatenate([subjects, noise], axis=2).reshape(-1, 16)
    np.save(folder / "v.npy", vectors.astype(np.float32))
    pairs: Table = []
    scored: Table = []
    triplets: Table = []
    for subject in range(0, SUBJECTS, 2):  # two subjects hang together
        a, b = ([EACH * one + n for n in range(EACH)] for one in (subject, subject + 1))
        pairs += [(str(a[n]), str(a[n - 1]), "1") for n in range(EACH)]
        pairs += [(str(a[n]), str(b[m]), "0") for n in range(EACH) for m in range(EACH)]
        triplets += [(str(a[n]), str(a[n - 1]), str(b[m])) for n in range(EACH) for m in (n, n - 1)]
    for one, other, same in pairs:
        scored.append((one, other, str(2 + int(same) + int(one) % 2)))
    questions.write_csv(folder / "pairs.csv", pairs, ("row1", "row2", "same"))
    questions.write_csv(folder / "scored.csv", scored, ("row1", "row2", "score"))
    same = [pair for pair in pairs if pair[2] == "1"]
    questions.write_csv(folder / "same.csv", same, ("row1", "row2", "same"))
    questions.write_csv(folder / "triplets.csv", triplets, ("anchor", "positive", "negative"))
    return folder


def write_split(folder: Path, to: Path, parts: Sequence[str]) -> Path:
    """Write the pairs with a column `set` that names these parts in turn, and the vectors."""
    head, *rows = (folder / "pairs.csv").read_text(encoding="utf-8").splitlines()
    lines = [f"{row},{part}" for row, part in zip(rows, itertools.cycle(parts), strict=False)]
    (to / "pairs.csv").write_text("\n".join([f"{head},set", *lines]), encoding="utf-8")
    shutil.copy(folder / "v.npy", to)
    return to


def config(folder: Path, table: str, out: Path, **settings: object) -> TrainConfig:
    """Return a quick training on one of the tables."""
    plain: dict[str, object] = {
        "data": str(folder / f"{table}.csv"),
        "out": str(out),
        "items": str(folder / "v.npy"),
        "twin": "mlp",
        "hidden": 32,
        "dimension": 8,
        "learning_rate": 0.01,
        "max_steps": 40,
        "evaluate_every": 20,
    }
    return TrainConfig(**{**plain, **settings})  # type: ignore[arg-type]


def trained(folder: Path, table: str, out: Path, **settings: object) -> Run:
    """Train on one of the tables."""
    return train(config(folder, table, out, **settings), progress=False)
