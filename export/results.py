"""How good a twin's graph is on report classes, and whether its thresholds hold there.

In: embeddings by onnxruntime of classes that shaped neither weights nor thresholds. Out: plain
values for the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twinserve.calibration import pair_distances
from twinserve.distance import Embeddings, Metric
from twinserve.export.evidence import OneShotSettings
from twinserve.manifest import ITEM, Calibration
from twinserve.train.data import Labelled


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
    points = [
        point
        for entry in calibrations
        if (entry.dimension, entry.aggregation) == (embeddings.shape[1], ITEM)
        for point in entry.points
    ]
    realised = [
        {
            "threshold": point.threshold,
            "promised_false_accept_rate_upper": point.false_accept_rate_upper,
            "false_accept_rate": float(np.mean(pairs.impostor <= point.threshold)),
            "true_accept_rate": float(np.mean(pairs.genuine <= point.threshold)),
        }
        for point in points
    ]
    return {**measured, "data_digest": labelled.digest, "at_the_thresholds": realised}
