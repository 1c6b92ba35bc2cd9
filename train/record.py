"""What a training writes down while it runs: log.csv, and the best checkpoint.

In: the figures of every step. Out: files of the run folder. The best twin is the one that stands
highest on the calibrate part (standing.py), and its checkpoint is on disk from the moment it is
found, so that a training stopped at any time loses nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from twinserve.manifest import write_atomically
from twinserve.train import checkpoint
from twinserve.train.boards import Board
from twinserve.train.config import TrainConfig
from twinserve.train.material import LinkMaterial, Material
from twinserve.train.objective import Figures
from twinserve.train.standing import calibrating
from twinserve.train.twins import Twin

FIGURES = tuple(field.name for field in dataclasses.fields(Figures))
# Of the calibrate part there are more, by the form of its data.
LOG_FIELDS = ("step", *FIGURES, "items_per_second")


class Keeper:
    """Watches a training: averages its figures, evaluates, logs, and keeps the best twin.

    Args:
        folder: of the run.
        twin: as it is trained.
        config: of the run.
        material: of the run.
        writes: whether files are written; of several processes one does.
    """

    def __init__(
        self,
        folder: Path,
        twin: Twin,
        config: TrainConfig,
        material: Material | LinkMaterial,
        writes: bool = True,
    ) -> None:
        self.best_step: int | None = None  # None until the first evaluation
        self.steps = 0
        self._folder = folder
        self._twin = twin
        self._config = config
        self._splits = material.splits
        self._digest = material.digest
        self._calibrating = calibrating(material, config)
        self._best: tuple[float, ...] | None = None
        self._window: list[Figures] = []
        self._window_items = 0
        self._window_started = time.monotonic()
        self._evaluated = 0  # the step of the last evaluation
        self._resumed_after: int | None = None
        self._said = ""
        self._log: Log | None = None
        self._writes = writes

    def __enter__(self) -> Keeper:
        if self._writes:
            self._log = Log(
                self._folder,
                (*LOG_FIELDS, *self._calibrating.columns),
                after=self._resumed_after,
                board=self._config.tensorboard,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._log is not None:
            self._log.close()

    def note(self, figures: Figures, items: int) -> None:
        """Take in the figures of one step."""
        self.steps += 1
        self._window.append(figures)
        self._window_items += items

    def evaluate(self, learning_rate: float) -> None:
        """Measure the calibrate part, log, and keep the twin if it is the best."""
        step = self.steps
        speed = self._window_items / max(time.monotonic() - self._window_started, 1e-9)
        standing = self._calibrating.standing(self._twin)
        means = {name: self._mean(name) for name in FIGURES}
        if self._log is not None:
            columns = dict(zip(self._calibrating.columns, standing.columns, strict=True))
            self._log.write(step, means, speed, columns, learning_rate)
        if self._best is None or standing.rank > self._best:
            self._best, self.best_step = standing.rank, step
            if self._writes:
                checkpoint.save(
                    self._folder,
                    twin=self._twin,
                    config=self._config,
                    splits=self._splits,
                    results={"calibrate": standing.results, "best_step": step},
                    data_digest=self._digest,
                    step=step,
                )
        self._evaluated = step
        self._said = standing.said if self.best_step == step else f"{standing.said} (not the best)"
        self._window.clear()
        self._window_items = 0
        self._window_started = time.monotonic()

    def line(self, figures: Figures) -> str:
        """Return how the training is doing, for its progress bar."""
        seen = (
            f"loss {figures.loss:.3f}, active {figures.active:.0%}, "
            f"genuine {figures.genuine:.3f}, impostor {figures.impostor:.3f}"
        )
        return f"{seen}; calibrate: {self._said}" if self._said else seen

    def state_dict(self) -> dict[str, Any]:
        """Return what was watched so far, as plain data."""
        return {
            "steps": self.steps,
            "evaluated": self._evaluated,
            "best": self._best,
            "best_step": self.best_step,
            "window": [dataclasses.astuple(figures) for figures in self._window],
            "window_items": self._window_items,
            "window_seconds": time.monotonic() - self._window_started,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, before the log is opened."""
        self.steps = state["steps"]
        self._evaluated = self._resumed_after = state["evaluated"]
        self._best = None if state["best"] is None else tuple(state["best"])
        self.best_step = state["best_step"]
        self._window = [Figures(*figures) for figures in state["window"]]
        self._window_items = state["window_items"]
        self._window_started = time.monotonic() - state["window_seconds"]

    def _mean(self, name: str) -> float:
        """Average a figure over the steps that have it: a batch may lack genuine pairs."""
        values = np.array([getattr(figures, name) for figures in self._window])
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else float("nan")

    @property
    def just_evaluated(self) -> bool:
        """Whether no step was taken since the last evaluation."""
        return self._evaluated == self.steps

    @property
    def out_of_patience(self) -> bool:
        """Whether too many evaluations went by without a better twin."""
        if not self._config.patience or self.best_step is None:
            return False
        return self.steps - self.best_step >= self._config.patience * self._config.evaluate_every


class Log:
    """The rows of log.csv, and the same for TensorBoard where it is asked for.

    Args:
        folder: of the run.
        fields: the columns.
        after: of a resumed training, which writes rows of later steps anew; None begins a log.
        board: write for TensorBoard too.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(
        self, folder: Path, fields: Sequence[str], *, after: int | None, board: bool
    ) -> None:
        path = folder / "log.csv"
        kept = _rows_up_to(path, fields, after) if after is not None else []
        self._board = Board(folder, after or 0) if board else None
        self._file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115, see close
        self._rows = csv.writer(self._file)
        self._rows.writerows([fields, *kept])
        self._file.flush()

    def write(
        self,
        step: int,
        means: dict[str, float],
        speed: float,
        calibrate: dict[str, float],
        learning_rate: float,
    ) -> None:
        """Write one evaluation: figures averaged since the last, and those of the calibrate part.

        Args:
            step: steps done.
            means: by name, as `FIGURES`.
            speed: items a second.
            calibrate: by name.
            learning_rate: of the step to come, for TensorBoard.
        """
        figures = (f"{means[name]:.5f}" for name in FIGURES)
        self._rows.writerow([step, *figures, f"{speed:.0f}", *calibrate.values()])
        self._file.flush()
        if self._board is not None:
            scalars = {f"train/{name}": value for name, value in means.items()}
            scalars.update({f"calibrate/{name}": value for name, value in calibrate.items()})
            scalars.update({"train/items_per_second": speed, "train/learning_rate": learning_rate})
            self._board.write(step, scalars)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _rows_up_to(path: Path, fields: Sequence[str], step: int) -> list[list[str]]:
    """Read the rows of a log up to a step; what is no such log gives none."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file))
    except (OSError, ValueError):
        return []
    whole = [row for row in rows if len(row) == len(fields) and row[0].isdecimal()]
    return [row for row in whole if int(row[0]) <= step] if head == list(fields) else []


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document for people and programs, whole or not at all."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
