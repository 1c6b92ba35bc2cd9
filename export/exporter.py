"""From a run folder to one file that serves: graph, gate, calibration, report, manifest.

In: what `twinserve train` left. Out: `twin.onnx`, written whole or not at all. Classes stay apart:
those of "calibrate" set the thresholds, those of "report" only measure, and both pass through
onnxruntime, which is what will serve. Nothing of the machine (paths, times, names) enters the file,
so that the same run gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from twinserve.calibration import calibrate, pair_distances
from twinserve.distance import Embeddings
from twinserve.errors import ConfigError, DataError, NotBuilt
from twinserve.export import parity
from twinserve.export.session import PROVIDER, GraphSession, embed_all
from twinserve.export.to_onnx import check_graph, to_onnx, weights_digest
from twinserve.manifest import (
    NAME,
    Calibration,
    Manifest,
    attach,
    digest_of_graph,
    space_id,
    write_atomically,
)
from twinserve.preprocess import check_contract
from twinserve.train import checkpoint
from twinserve.train.checkpoint import Run
from twinserve.train.data import Labelled
from twinserve.train.evaluate import embed, evaluate
from twinserve.train.twins import Twin

PRECISIONS = ("fp32",)
LATER_PRECISIONS = ("fp16", "int8")
VERSION_DIGITS = 12
# All pairs of the calibrating items are measured; of more items than this a seeded draw is, since
# pairs grow with the square.
MAX_CALIBRATION_ITEMS = 4000

Graph = Callable[[Twin], bytes]
Progress = Callable[[str], None]


def export(
    run_dir: Path | str,
    out: Path | str,
    name: str | None = None,
    version: str | None = None,
    *,
    precision: str = "fp32",
    graph: Graph = to_onnx,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Write a run's twin as one file, if it passes the gate.

    Args:
        run_dir: the folder that training wrote.
        out: the file to write, such as `twin.onnx`; an older one is replaced.
        name: of the twin; the file's own name when not given.
        version: of the twin; when not given, the first digits of the weights' digest, so that
            another training gives another version.
        precision: fp32; others are not built yet.
        graph: makes the graph of a twin.
        progress: is told of each stage in a few words.

    Returns:
        The manifest inside the file.

    Raises:
        NotBuilt: a precision of a later release.
        ConfigError: a name, version or precision that cannot be.
        DataError: no run there, data that changed since, or too little to calibrate on.
        GateFailed: the graph does not repeat the twin; nothing was written.
        ManifestError: above 2 GB.
    """
    out = Path(out)
    _check_precision(precision)
    name = out.name.split(".")[0] if name is None else name
    _check_word("name", name)
    if version is not None:
        _check_word("version", version)
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent} to write {out.name} into; make it")

    progress("reading the run")
    run = checkpoint.load(run_dir)
    twin = run.twin
    check_contract(twin.contract)
    weights = weights_digest(twin)
    held_out = {part: _drawn(run.part(part)) for part in ("calibrate", "report")}
    for part, images in held_out.items():
        if len(images) == 0:
            raise DataError(f"the run's {part} part is empty; split the data anew and train again")

    progress("writing the graph")
    model = graph(twin)
    check_graph(model, twin.contract, twin.dimension)

    progress("passing the gate")
    session = GraphSession(model, twin.contract)
    inputs = np.concatenate([images.rows for images in held_out.values()])
    # Rows from both parts and all over their classes, the same ones every time.
    chosen = np.random.default_rng(0).permutation(len(inputs))
    vectors = parity.check_vectors(_source(twin), session, inputs[chosen])

    progress("calibrating")
    setting = held_out["calibrate"]
    pairs = pair_distances(embed_all(session, setting.rows), setting.labels, twin.metric)
    calibration = calibrate(
        pairs,
        precision=precision,
        dimension=twin.dimension,
        metric=twin.metric,
        data_digest=setting.digest,
    )
    decisions = parity.check_decisions(
        pair_distances(embed(twin, setting.rows), setting.labels, twin.metric),
        pairs,
        calibration.points,
        twin.metric,
        largest_coordinate=vectors.largest_coordinate,
    )

    progress("measuring the report classes")
    measuring = held_out["report"]
    results = _report(run, measuring, embed_all(session, measuring.rows), calibration)

    manifest = Manifest(
        name=name,
        version=weights[:VERSION_DIGITS] if version is None else version,
        modality="image",
        input=twin.contract,
        dimension=twin.dimension,
        normalized=twin.normalized,
        metric=twin.metric,
        space_id=space_id(weights, twin.contract, twin.dimension, twin.normalized),
        graph_digest=digest_of_graph(model),
        precision=precision,
        calibrations=(calibration,),
        parity={
            "source": f"torch {torch.__version__}",
            "candidate": f"onnxruntime {onnxruntime.__version__} {PROVIDER}",
            "vectors": vectors.to_dict(),
            "decisions": decisions.to_dict(),
        },
        training=_training(run, weights, results),
    )
    progress("writing the file")
    write_atomically(out, attach(model, manifest))
    return Manifest.from_json(manifest.to_json())  # as every reader will see it


def class_digests(images: Labelled) -> list[str]:
    """Name classes without showing them: a sorted list of digests over each class's pixels.

    A calibration set that shares a class with the training set shares a digest here, whatever its
    folder is called. Items of a class are taken in no order, so that renamed files change nothing.
    """
    items: dict[int, list[bytes]] = {}
    for label, pixels in zip(images.labels.tolist(), images.rows, strict=True):
        items.setdefault(label, []).append(
            hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()
        )
    return sorted(
        hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:32] for digests in items.values()
    )


def name_digests(images: Labelled) -> list[str]:
    """Digests of the classes' names, sorted."""
    return sorted(hashlib.sha256(name.encode()).hexdigest()[:32] for name in images.class_names)


def _check_precision(precision: str) -> None:
    if precision in LATER_PRECISIONS:
        raise NotBuilt(
            f"precision {precision} is not built yet; export fp32, "
            "which every provider runs, or wait for a later release"
        )
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS + LATER_PRECISIONS)
        raise ConfigError(f"precision is {precision!r}; known ones are {known}")


def _check_word(what: str, value: str) -> None:
    if not NAME.fullmatch(value):
        raise ConfigError(
            f"the twin's {what} is {value!r}; it may hold letters, digits, '.', '_' and '-', "
            f"up to 128 of them, and begins with a letter or digit; give --{what}"
        )


def _source(twin: Twin) -> parity.Embedder:
    def run(inputs: NDArray[np.uint8]) -> Embeddings:
        return embed(twin, inputs)

    return run


def _drawn(images: Labelled) -> Labelled:
    if len(images) <= MAX_CALIBRATION_ITEMS:
        return images
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:MAX_CALIBRATION_ITEMS])
    return dataclasses.replace(
        images,
        rows=images.rows[chosen],
        labels=images.labels[chosen],
        names=tuple(images.names[index] for index in chosen),
    )


def _report(
    run: Run, images: Labelled, embeddings: Embeddings, calibration: Calibration
) -> dict[str, Any]:
    """Measure classes that set no threshold: how good the twin is, and whether thresholds hold."""
    metric = run.twin.metric
    measured = evaluate(
        embeddings,
        images.labels,
        images.groups,
        metric,
        ways=run.config.one_shot_ways,
        trials=run.config.one_shot_trials,
        seed=run.config.seed,
    ).to_dict()
    pairs = pair_distances(embeddings, images.labels, metric)
    realised = [
        {
            "threshold": point.threshold,
            "promised_false_accept_rate_upper": point.false_accept_rate_upper,
            "false_accept_rate": float(np.mean(pairs.impostor <= point.threshold)),
            "true_accept_rate": float(np.mean(pairs.genuine <= point.threshold)),
        }
        for point in calibration.points
    ]
    return {**measured, "data_digest": images.digest, "at_the_thresholds": realised}


def _training(run: Run, weights: str, results: dict[str, Any]) -> dict[str, Any]:
    """Say how the twin was made, with nothing in it of the machine that made it."""
    train = run.part("train")
    settings = run.config.to_dict()
    for key in ("data", "out"):  # paths
        settings.pop(key, None)
    return {
        "data_digest": run.data_digest,
        "weights_digest": weights,
        "loss": run.config.loss,
        "mining": run.config.mining,
        "seed": run.config.seed,
        "steps": run.step,
        "config": settings,
        "classes": {
            part: len(getattr(run.splits, part)) for part in ("train", "calibrate", "report")
        },
        "train_items": len(train),
        "train_class_digests": class_digests(train),
        "train_class_name_digests": name_digests(train),
        "report": results,
    }
