"""How good a twin's graph is on the report part, and whether its thresholds hold there.

In: embeddings by onnxruntime of classes, pairs or triplets that shaped neither weights nor
thresholds. Out: plain values for the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twinserve.calibration import pair_distances
from twinserve.distance import Embeddings, FloatArray, Metric, paired
from twinserve.export.evidence import OneShotSettings
from twinserve.manifest import ITEM, Calibration
from twinserve.train.data import Labelled
from twinserve.train.judged import figures_of
from twinserve.train.pairs import PairData, TripletData


def results(
    embeddings: Embeddings,
    labelled: Labelled,
    metric: Metric,
    calibrations: Sequence[Calibration],
    one_shot: OneShotSettings,
) -> dict[str, Any]:
    """Measure verification and one-shot identification, and FAR and TAR at each threshold.

    Args:
        embeddings: float32 [n, dimension] of the report rows.
        labelled: those rows.
        metric: of the twin.
        calibrations: of the twin; the thresholds of single pairs at full dimension are tried.
        one_shot: how many questions are asked.

    Raises:
        DataError: no genuine or no impostor pair.
    """
    from twinserve.train.evaluate import evaluate  # brings torch, which imports may lack

    measured = evaluate(
        embeddings,
        labelled.labels,
        labelled.groups,
        metric,
        ways=one_shot.ways,
        trials=one_shot.trials,
        seed=one_shot.seed,
    ).to_dict()
    pairs = pair_distances(embeddings, labelled.labels, metric)
    realised = _realised(pairs.genuine, pairs.impostor, embeddings.shape[1], calibrations)
    return {**measured, "data_digest": labelled.digest, "at_the_thresholds": realised}


def results_of_links(
    embeddings: Embeddings,
    data: PairData | TripletData,
    metric: Metric,
    calibrations: Sequence[Calibration],
) -> dict[str, Any]:
    """Measure what pairs or triplets allow, and FAR and TAR at each threshold where there are any.

    Args:
        embeddings: float32 [n, dimension], of the items of `data`.
        data: the report part.
        metric: of the twin.
        calibrations: of the twin; empty where its pairs have scores.
    """
    measured = {
        **figures_of(embeddings, data, metric).to_dict(),
        "data_digest": data.digest,
    }
    pairs = data.pairs if isinstance(data, TripletData) else data
    if not calibrations or not pairs.binary:
        return measured
    first, second = pairs.members.T
    distances = paired(embeddings[first], embeddings[second], metric)
    same = pairs.targets == 1.0
    if same.all() or not same.any():
        return measured
    realised = _realised(distances[same], distances[~same], embeddings.shape[1], calibrations)
    return {**measured, "at_the_thresholds": realised}


def _realised(
    genuine: FloatArray, impostor: FloatArray, dimension: int, calibrations: Sequence[Calibration]
) -> list[dict[str, float]]:
    points = [
        point
        for entry in calibrations
        if (entry.dimension, entry.aggregation) == (dimension, ITEM)
        for point in entry.points
    ]
    return [
        {
            "threshold": point.threshold,
            "promised_false_accept_rate_upper": point.false_accept_rate_upper,
            "false_accept_rate": float(np.mean(impostor <= point.threshold)),
            "true_accept_rate": float(np.mean(genuine <= point.threshold)),
        }
        for point in points
    ]
