"""What a training writes down: log.csv and the best checkpoint while it runs, the report after.

In: the figures of every step. Out: the files of the run folder. The best twin is the one with the
highest one-shot accuracy on the calibrate classes (then the lowest EER), and its checkpoint is on
disk from the moment it is found, so that a training stopped at any time loses nothing.
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

from twinserve.calibration import pair_distances
from twinserve.distance import Embeddings, Metric
from twinserve.manifest import TensorInput, TextInput, write_atomically
from twinserve.train import checkpoint, plots
from twinserve.train.checkpoint import Run
from twinserve.train.config import TrainConfig
from twinserve.train.data import Labelled
from twinserve.train.evaluate import (
    Report,
    bags_of_words,
    embed,
    evaluate,
    measured_items,
    one_shot_accuracy,
    one_shot_trials,
    pixel_vectors,
)
from twinserve.train.held_out import HeldOut, measure
from twinserve.train.material import Material
from twinserve.train.objective import Figures
from twinserve.train.report.page import write_page
from twinserve.train.report.shown import of_classes
from twinserve.train.twins import Twin

FIGURES = tuple(field.name for field in dataclasses.fields(Figures))
LOG_FIELDS = ("step", *FIGURES, "items_per_second", "one_shot", "equal_error_rate")


class Keeper:
    """Watches a training: averages its figures, evaluates, logs, and keeps the best twin."""

    def __init__(
        self,
        folder: Path,
        twin: Twin,
        config: TrainConfig,
        material: Material,
    ) -> None:
        self.best_step: int | None = None  # None until the first evaluation
        self.steps = 0
        self._folder = folder
        self._twin = twin
        self._config = config
        self._splits = material.splits
        self._digest = material.labelled.digest
        self._calibrating = material.labelled.of_classes(material.splits.calibrate)
        self._best: tuple[float, float] | None = None
        self._window: list[Figures] = []
        self._window_items = 0
        self._window_started = time.monotonic()

    def __enter__(self) -> Keeper:
        self._log = open(self._folder / "log.csv", "w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._log)
        self._rows.writerow(LOG_FIELDS)
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
        """Measure the calibrate classes, log, keep the twin if it is the best; return a line."""
        speed = self._window_items / max(time.monotonic() - self._window_started, 1e-9)
        report = evaluate_part(self._twin, self._calibrating, self._config)
        accuracy, eer = report.one_shot.accuracy, report.equal_error_rate
        means = dict.fromkeys(FIGURES, float("nan"))
        if self._window:
            rows = np.array([dataclasses.astuple(figures) for figures in self._window])
            means = dict(zip(FIGURES, rows.mean(axis=0).tolist(), strict=True))
        self._rows.writerow(
            [step, *(f"{means[name]:.5f}" for name in FIGURES), f"{speed:.0f}", accuracy, eer]
        )
        self._log.flush()
        if self._best is None or (accuracy, -eer) > self._best:
            self._best, self.best_step = (accuracy, -eer), step
            checkpoint.save(
                self._folder,
                twin=self._twin,
                config=self._config,
                splits=self._splits,
                results={"calibrate": report.to_dict(), "best_step": step},
                data_digest=self._digest,
                step=step,
            )
        self._window.clear()
        self._window_items = 0
        self._window_started = time.monotonic()
        return (
            f"loss {means['loss']:.3f}, active {means['active']:.0%}, "
            f"genuine {means['genuine']:.3f}, impostor {means['impostor']:.3f}, "
            f"{speed:.0f} items/s, one-shot {accuracy:.1%}, EER {eer:.1%}"
        )

    def out_of_patience(self, step: int) -> bool:
        """Tell whether too many evaluations went by without a better twin."""
        if not self._config.patience or self.best_step is None:
            return False
        return step - self.best_step >= self._config.patience * self._config.evaluate_every


def evaluate_part(twin: Twin, part: Labelled, config: TrainConfig) -> Report:
    """Embed a part of the split and measure it, with the config's one-shot trials."""
    return _evaluated(embed(twin, part.rows), part, twin.metric, config)


def _evaluated(
    embeddings: Embeddings, part: Labelled, metric: Metric, config: TrainConfig
) -> Report:
    return evaluate(
        embeddings,
        part.labels,
        part.groups,
        metric,
        ways=config.one_shot_ways,
        trials=config.one_shot_trials,
        seed=config.seed,
    )


def write_report(
    folder: Path, labelled: Labelled, stopped: str, steps: int, seconds: float
) -> None:
    """Measure the best twin on the report classes, draw, and complete the checkpoint's results.

    Args:
        folder: of the run, with its checkpoint.
        labelled: the whole data set of the run.
        stopped: why the training ended: max_steps, max_seconds, patience or interrupted.
        steps: how many were done.
        seconds: how long they took, evaluations included.
    """
    run = checkpoint.load(folder)
    part = labelled.of_classes(run.splits.report)
    embeddings = embed(run.twin, part.rows)
    report = _evaluated(embeddings, part, run.twin.metric, run.config)
    results: dict[str, Any] = {
        **run.results,
        "report": report.to_dict(),
        **_baseline_one_shot(run, part, report),
        "stopped": stopped,
        "steps": steps,
        "seconds": round(seconds, 1),
    }
    checkpoint.save(
        folder,
        twin=run.twin,
        config=run.config,
        splits=run.splits,
        results=results,
        data_digest=run.data_digest,
        step=run.step,
    )
    write_json(folder / "report.json", results)
    chosen = measured_items(len(part), run.config.seed)
    pairs = pair_distances(embeddings[chosen], part.labels[chosen], run.twin.metric)
    plots.draw_roc(pairs, folder / "roc.png")
    plots.draw_distances(pairs, run.twin.metric, folder / "distances.png")
    write_evaluation(run, labelled, embeddings, results)


def write_evaluation(
    run: Run, labelled: Labelled, embeddings: Embeddings, results: dict[str, Any]
) -> HeldOut:
    """Measure a run's report classes in full; write evaluation.json and report.html beside it.

    Args:
        run: a finished one.
        labelled: its whole data set.
        embeddings: float32 [n, dimension], of the report classes by the run's twin.
        results: as report.json holds them.
    """
    part = labelled.of_classes(run.splits.report)
    measured = measure(
        embeddings,
        part.labels,
        part.groups,
        run.twin.metric,
        ways=run.config.one_shot_ways,
        trials=run.config.one_shot_trials,
        seed=run.config.seed,
    )
    measured.save(run.folder)
    write_page(run, of_classes(run, labelled, embeddings, measured), measured, results)
    return measured


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document for people and programs, whole or not at all."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def _baseline_one_shot(run: Run, part: Labelled, report: Report) -> dict[str, float]:
    """One-shot accuracy of 1-nearest-neighbour without a twin, on the trials of the report."""
    trials = one_shot_trials(
        part.labels,
        ways=report.one_shot.ways,
        trials=report.one_shot.trials,
        seed=run.config.seed,
        groups=part.groups,
    )
    if isinstance(run.twin.contract, TextInput):
        found = one_shot_accuracy(bags_of_words(part.rows), trials, Metric.COSINE)
        return {"bag_of_words_one_shot": found}
    if isinstance(run.twin.contract, TensorInput):
        found = one_shot_accuracy(np.asarray(part.rows, np.float32), trials, run.twin.metric)
        return {"vectors_one_shot": found}
    found = one_shot_accuracy(pixel_vectors(part.rows), trials, Metric.EUCLIDEAN)
    return {"pixels_one_shot": found}
