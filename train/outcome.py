"""What a training leaves when it has ended: the best twin's figures on the report part.

In: a run folder with its checkpoint, and the data. Out: report.json, evaluation.json and
report.html, roc.png and distances.png where there are pairs of both kinds, and the checkpoint with
its results complete.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from twinserve.distance import Embeddings, Metric
from twinserve.errors import TwinserveError
from twinserve.feed import Rows
from twinserve.manifest import ImageInput, TensorInput, TextInput
from twinserve.train import checkpoint, plots
from twinserve.train.build import as_it_came
from twinserve.train.change import changes_of_classes, changes_of_links
from twinserve.train.checkpoint import Run
from twinserve.train.data import PARTS, Labelled
from twinserve.train.evaluate import (
    MAX_ITEMS,
    Report,
    bags_of_words,
    embed,
    one_shot_accuracy,
    one_shot_trials,
    pixel_vectors,
)
from twinserve.train.held_out import HeldOut, measure, measure_links
from twinserve.train.judged import JudgedFigures, figures_of
from twinserve.train.material import LinkMaterial, Material
from twinserve.train.pairs import PairData, TripletData
from twinserve.train.record import write_json
from twinserve.train.report.page import write_page
from twinserve.train.report.shown import Shown, of_classes, of_links
from twinserve.train.standing import evaluated

_BASELINES = {
    "bag_of_words": "bags of words",
    "vectors": "the vectors as given",
    "pixels": "pixels",
}


def write_report(
    folder: Path, material: Material | LinkMaterial, stopped: str, steps: int, seconds: float
) -> None:
    """Measure the best twin on the report part, draw, and complete the checkpoint's results.

    Args:
        folder: of the run, with its checkpoint.
        material: of the run.
        stopped: why the training ended: max_steps, max_seconds, patience or interrupted.
        steps: how many were done.
        seconds: how long they took, evaluations included.
    """
    run = checkpoint.load(folder)
    ended = {"stopped": stopped, "steps": steps, "seconds": round(seconds, 1)}
    if isinstance(material, LinkMaterial):
        links = material.data.of_rows(material.splits.report)
        embeddings = embed(run.twin, links.rows)
        found = _of_links(run, links, embeddings)
    else:
        part = material.labelled.of_classes(material.splits.report)
        embeddings = embed(run.twin, part.rows)
        found = _of_classes(run, part, embeddings)
    results = {**run.results, **found, **ended}
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
    data = material.data if isinstance(material, LinkMaterial) else material.labelled
    write_evaluation(run, data, embeddings, results, draw=True)


def measure_again(run: Run) -> HeldOut:
    """Measure a finished run anew from its checkpoint and data; see `write_evaluation`."""
    if run.is_linked:
        rows, data = run.linked_part("report").rows, run.linked
        return write_evaluation(run, data, embed(run.twin, rows), run.results)
    rows = run.part("report").rows
    return write_evaluation(run, run.labelled, embed(run.twin, rows), run.results)


def write_evaluation(
    run: Run,
    data: Labelled | PairData | TripletData,
    embeddings: Embeddings,
    results: dict[str, Any],
    *,
    draw: bool = False,
) -> HeldOut:
    """Measure a run's report part in full; write evaluation.json and report.html beside it.

    Args:
        run: a finished one.
        data: its whole data set.
        embeddings: float32 [n, dimension], of the report part's items by the run's twin.
        results: as report.json holds them.
        draw: write roc.png and distances.png too.
    """
    if isinstance(data, Labelled):
        measured, shown = _classes_in_full(run, data, embeddings)
    else:
        measured, shown = _links_in_full(run, data, embeddings)
    measured.save(run.folder)
    if draw and shown.pairs is not None:
        plots.draw_roc(shown.pairs, run.folder / "roc.png")
        plots.draw_distances(shown.pairs, run.twin.metric, run.folder / "distances.png")
    write_page(run, shown, measured, results)
    return measured


def _classes_in_full(run: Run, labelled: Labelled, embeddings: Embeddings) -> tuple[HeldOut, Shown]:
    part = labelled.of_classes(run.classes.report)
    config, metric = run.config, run.twin.metric
    ways, trials, seed = config.one_shot_ways, config.one_shot_trials, config.seed
    measured = measure(
        embeddings, part.labels, part.groups, metric, ways=ways, trials=trials, seed=seed
    )
    before = _before(run, part.rows)
    if before is not None:
        changes = changes_of_classes(
            (before, embeddings),
            part.labels,
            part.groups,
            metric,
            ways=ways,
            trials=trials,
            seed=seed,
        )
        measured = dataclasses.replace(measured, changes=changes)
    return measured, of_classes(run, labelled, embeddings, measured)


def _links_in_full(
    run: Run, data: PairData | TripletData, embeddings: Embeddings
) -> tuple[HeldOut, Shown]:
    parts = {name: data.of_rows(getattr(run.splits, name)) for name in PARTS}
    part, metric, seed = parts["report"], run.twin.metric, run.config.seed
    measured = measure_links(embeddings, part, metric, seed=seed)
    before = _before(run, part.rows)
    if before is not None:
        changes = changes_of_links((before, embeddings), part, metric, seed=seed)
        measured = dataclasses.replace(measured, changes=changes)
    counts = {name: (len(part), len(part.names)) for name, part in parts.items()}
    return measured, of_links(run, part, embeddings, measured, counts)


def _before(run: Run, rows: Rows) -> Embeddings | None:
    """Embed rows by the twin as it came, None where `as_it_came` gives none."""
    twin = as_it_came(run.config, run.twin)
    return None if twin is None else embed(twin, rows)


def _of_classes(run: Run, part: Labelled, embeddings: Embeddings) -> dict[str, Any]:
    report = evaluated(embeddings, part, run.twin.metric, run.config)
    return {"report": report.to_dict(), **_baseline_one_shot(run, part, report)}


def _of_links(run: Run, part: PairData | TripletData, embeddings: Embeddings) -> dict[str, Any]:
    figures = figures_of(embeddings, part, run.twin.metric)
    return {"report": figures.to_dict(), **_baseline(run, part, figures)}


def _baseline_one_shot(run: Run, part: Labelled, report: Report) -> dict[str, float]:
    """One-shot accuracy of 1-nearest-neighbour without a twin, on the trials of the report."""
    trials = one_shot_trials(
        part.labels,
        ways=report.one_shot.ways,
        trials=report.one_shot.trials,
        seed=run.config.seed,
        groups=part.groups,
    )
    name, vectors, metric = _without_a_twin(run, part.rows)
    return {f"{name}_one_shot": one_shot_accuracy(vectors, trials, metric)}


def _baseline(
    run: Run, part: PairData | TripletData, reached: JudgedFigures
) -> dict[str, dict[str, Any]]:
    """Measure pairs or triplets without a twin; of many items, which take much memory, not."""
    if len(part.names) > MAX_ITEMS or not reached.values:
        return {}
    name, vectors, metric = _without_a_twin(run, part.rows)
    try:
        found = figures_of(vectors, part, metric)
    except TwinserveError:  # an empty text or a zero vector, which only a twin can compare
        return {}
    beaten = reached.rank > found.rank
    return {"baseline": {"of": _BASELINES[name], **found.values, "beaten": beaten}}


def _without_a_twin(run: Run, rows: Rows) -> tuple[str, Embeddings, Metric]:
    """Return what items are compared by without a twin: its name, vectors and metric."""
    contract = run.twin.contract
    if isinstance(contract, TextInput):
        return "bag_of_words", bags_of_words(rows), Metric.COSINE
    if isinstance(contract, TensorInput):
        flat = np.asarray(rows, np.float32).reshape(len(rows), -1)
        return "vectors", flat, run.twin.metric
    assert isinstance(contract, ImageInput)
    return "pixels", pixel_vectors(rows), Metric.EUCLIDEAN
