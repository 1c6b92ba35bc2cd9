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
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from twinserve.manifest import write_atomically
from twinserve.train import checkpoint
from twinserve.train.config import TrainConfig
from twinserve.train.material import LinkMaterial, Material
from twinserve.train.objective import Figures
from twinserve.train.standing import calibrating
from twinserve.train.twins import Twin

FIGURES = tuple(field.name for field in dataclasses.fields(Figures))
# Of the calibrate part there are more, by the form of its data.
LOG_FIELDS = ("step", *FIGURES, "items_per_second")


class Keeper:
    """Watches a training: averages its figures, evaluates, logs, and keeps the best twin."""

    def __init__(
        self,
        folder: Path,
        twin: Twin,
        config: TrainConfig,
        material: Material | LinkMaterial,
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

    def __enter__(self) -> Keeper:
        self._log = open(self._folder / "log.csv", "w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._log)
        self._rows.writerow([*LOG_FIELDS, *self._calibrating.columns])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.close()

    def note(self, figures: Figures, items: int) -> None:
        """Take in the figures of one step."""
        self.steps += 1
        self._window.append(figures)
        self._window_items += items

    def evaluate(self, step: int) -> str:
        """Measure the calibrate part, log, keep the twin if it is the best; return a line."""
        speed = self._window_items / max(time.monotonic() - self._window_started, 1e-9)
        standing = self._calibrating.standing(self._twin)
        means = {name: self._mean(name) for name in FIGURES}
        self._rows.writerow(
            [step, *(f"{means[name]:.5f}" for name in FIGURES), f"{speed:.0f}", *standing.columns]
        )
        self._log.flush()
        if self._best is None or standing.rank > self._best:
            self._best, self.best_step = standing.rank, step
            checkpoint.save(
                self._folder,
                twin=self._twin,
                config=self._config,
                splits=self._splits,
                results={"calibrate": standing.results, "best_step": step},
                data_digest=self._digest,
                step=step,
            )
        self._window.clear()
        self._window_items = 0
        self._window_started = time.monotonic()
        return (
            f"loss {means['loss']:.3f}, active {means['active']:.0%}, "
            f"genuine {means['genuine']:.3f}, impostor {means['impostor']:.3f}, "
            f"{speed:.0f} items/s, {standing.said}"
        )

    def _mean(self, name: str) -> float:
        """Average a figure over the steps that have it: a batch may lack genuine pairs."""
        values = np.array([getattr(figures, name) for figures in self._window])
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else float("nan")

    def out_of_patience(self, step: int) -> bool:
        """Tell whether too many evaluations went by without a better twin."""
        if not self._config.patience or self.best_step is None:
            return False
        return step - self.best_step >= self._config.patience * self._config.evaluate_every


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document for people and programs, whole or not at all."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
