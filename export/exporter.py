"""From a run folder to files that serve, one per precision; assemble.py does the work.

In: what `twinserve train` left. Out: `twin.onnx` and its other precisions, each written whole or
not at all. What is told of the training (settings, counts, digests) says nothing of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinserve.distance import Embeddings
from twinserve.errors import ConfigError, DataError
from twinserve.export import overlap
from twinserve.export.assemble import (
    PRECISIONS,
    Outcome,
    Progress,
    assemble,
    check_word,
    paths_for,
    write,
)
from twinserve.export.evidence import Evidence, Facts, OneShotSettings, Source
from twinserve.export.pairs import Pairs, pairs_of
from twinserve.export.to_onnx import to_onnx, weights_digest
from twinserve.feed import Rows
from twinserve.manifest import Manifest, TextInput
from twinserve.train import checkpoint, evidence
from twinserve.train.checkpoint import Run
from twinserve.train.data import PARTS, Labelled, take
from twinserve.train.evaluate import embed
from twinserve.train.links import identities
from twinserve.train.pairs import PairData, TripletData
from twinserve.train.twins import Twin

VERSION_DIGITS = 12
# Held-out rows for the gate, and training rows to find the ranges of int8 on.
GATE_ROWS = 1024
RANGE_ROWS = 1024

Graph = Callable[[Twin], bytes]


def export(
    run_dir: Path | str,
    out: Path | str,
    name: str | None = None,
    version: str | None = None,
    *,
    graph: Graph = to_onnx,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Write a run's twin as one fp32 file, if it passes the gate, and return its manifest.

    The arguments and errors are those of `export_precisions`.
    """
    outcome = export_precisions(run_dir, out, name, version, graph=graph, progress=progress)
    return outcome.twins[0].manifest


def export_precisions(
    run_dir: Path | str,
    out: Path | str,
    name: str | None = None,
    version: str | None = None,
    *,
    precisions: Sequence[str] = PRECISIONS[:1],
    optimize: bool = False,
    graph: Graph = to_onnx,
    progress: Progress = lambda _: None,
) -> Outcome:
    """Write a run's twin in each precision that passes its gate.

    Args:
        run_dir: the folder that training wrote.
        out: the file to write, such as `twin.onnx`; see `assemble.paths_for` for those of other
            precisions. Older ones are replaced.
        name: of the twin; the file's own name when not given.
        version: of the twin; when not given, the first digits of the weights' digest, so that
            another training gives another version.
        precisions: of `assemble.PRECISIONS`.
        optimize: see `assemble.assemble`.
        graph: makes the graph of a twin.
        progress: is told of each stage in a few words.

    Returns:
        What was written, and why the rest was not.

    Raises:
        ConfigError: a name, version or precision that cannot be.
        DataError: no run there, data that changed since, or too little to calibrate on.
        GateFailed: the graph does not repeat the twin; nothing was written.
        ManifestError: above 2 GB, or a tokenizer that does not fit.
    """
    out = Path(out)
    paths_for(out, precisions)
    name = out.name.split(".")[0] if name is None else name
    check_word("name", name)
    if version is not None:
        check_word("version", version)
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent} to write {out.name} into; make it")

    progress("reading the run")
    run = checkpoint.load(run_dir)
    twin = run.twin
    train, held_out = _of_links(run, progress) if run.is_linked else _of_classes(run)
    weights = weights_digest(twin)

    progress("writing the graph")
    outcome = assemble(
        graph(twin),
        Facts(
            name=name,
            version=weights[:VERSION_DIGITS] if version is None else version,
            contract=twin.contract,
            dimension=twin.dimension,
            metric=twin.metric,
            normalized=twin.normalized,
            weights_digest=weights,
            truncations=twin.truncations,
            tokenizer=twin.tokenizer,
            training=_training(run, weights, train),
            origin={} if twin.blueprint is None else twin.blueprint["origin"],
        ),
        torch_source(twin),
        held_out,
        precisions,
        optimize=optimize,
        progress=progress,
    )
    progress("writing the file")
    write(outcome, out)
    return outcome


def torch_source(twin: Twin) -> Source:
    """Return a twin in torch as the source that its graph must repeat."""

    def run(rows: Rows) -> Embeddings:
        return embed(twin, rows)

    return Source(run, f"torch {torch.__version__}")


def _of_classes(run: Run) -> tuple[Labelled, Evidence]:
    """Return the training part, and what the twin is measured on."""
    train, calibrate, report = (_filled(part, run.part(part)) for part in PARTS)
    return train, Evidence(
        # Of both parts and all over their classes, the same ones every time.
        gate=_some(_joined(calibrate.rows, report.rows), GATE_ROWS),
        calibrate=calibrate,
        report=report,
        one_shot=OneShotSettings(
            run.config.one_shot_ways, run.config.one_shot_trials, run.config.seed
        ),
        ranges=_some(train.rows, RANGE_ROWS),
    )


def _of_links(run: Run, progress: Progress) -> tuple[Labelled, Evidence]:
    """Return the items of the training part, and what the twin is measured on."""
    train, calibrate, report = (run.linked_part(part) for part in PARTS)
    for part, data in zip(PARTS, (train, calibrate, report), strict=True):
        _filled(part, data.items)
    return train.items, Evidence(
        gate=_some(_joined(calibrate.rows, report.rows), GATE_ROWS),
        pairs=_calibrating(_unseen(run, progress), progress),
        report=report,
        ranges=_some(train.rows, RANGE_ROWS),
    )


def _unseen(run: Run, progress: Progress) -> PairData | TripletData:
    """Return the calibrate part without what holds an item of the training part.

    A split that the data name may share items; thresholds set on these would promise too much.
    """
    data, splits = run.linked, run.splits
    texts = isinstance(run.twin.contract, TextInput)
    same = identities(data.names, None if texts else data.rows)[data.members]
    rows = np.asarray(splits.calibrate)
    seen = np.isin(same[rows], same[np.asarray(splits.train)]).any(axis=1)
    if seen.any():
        progress(
            f"leaving {int(seen.sum())} of {len(rows)} calibrate {_counted(run)} out, which hold "
            "items that were trained on"
        )
    return data.of_rows(rows[~seen])


def _calibrating(calibrate: PairData | TripletData, progress: Progress) -> Pairs | None:
    """Return the pairs that set thresholds; where they cannot, say why not and return none."""
    data = calibrate.pairs if isinstance(calibrate, TripletData) else calibrate
    if not data.binary:
        progress(
            "leaving the twin without thresholds, since its pairs have scores: `twinserve "
            "calibrate --pairs FILE --same-above SCORE` sets them"
        )
        return None
    pairs = pairs_of(data)
    facts, lacking = evidence.of_pairs(int((~pairs.same).sum()), ())
    if facts["smallest_rate_at_best"] is None or not pairs.same.any():
        said = lacking[0].message if lacking else "the calibrate part has no pairs of the same item"
        progress(f"leaving the twin without thresholds: {said}")
        return None
    return pairs


def _filled(part: str, labelled: Labelled) -> Labelled:
    if len(labelled) == 0:
        raise DataError(f"the run's {part} part is empty; split the data anew and train again")
    return labelled


def _joined(first: Rows, second: Rows) -> Rows:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.concatenate([first, second])
    return [*first, *second]


def _some(rows: Rows, most: int) -> Rows:
    return take(rows, np.random.default_rng(0).permutation(len(rows))[:most])


def _training(run: Run, weights: str, train: Labelled) -> dict[str, Any]:
    """Say how the twin was made, with nothing in it of the machine that made it."""
    settings = run.config.to_dict()
    # Paths, and how a training is watched, which say nothing of the twin.
    for key in ("data", "out", "weights", "items", "labels", "save_seconds", "tensorboard"):
        settings.pop(key, None)
    return {
        "data_digest": run.data_digest,
        "weights_digest": weights,
        "loss": run.config.loss,
        "mining": run.config.mining,
        "seed": run.config.seed,
        "steps": run.step,
        "config": settings,
        _counted(run): {part: len(getattr(run.splits, part)) for part in PARTS},
        "train_items": len(train),
        overlap.KEY: overlap.sketches(train),
    }


def _counted(run: Run) -> str:
    """Return what the parts of a run's split are made of."""
    if not run.is_linked:
        return "classes"
    return "triplets" if isinstance(run.linked, TripletData) else "pairs"
