"""Pairs of embeddings to comparisons: distance, likelihood and decision of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twinserve import decision, distance
from twinserve.decision import Likelihood, Limit, Outcome, Rule
from twinserve.distance import Metric
from twinserve.manifest import Calibration
from twinserve.server.inputs import Vector


@dataclass(frozen=True)
class Comparison:
    """One measured pair."""

    distance: float
    likelihood: Likelihood
    limit: Limit
    outcome: Outcome


def compare(
    first: Sequence[Vector],
    second: Sequence[Vector],
    metric: Metric,
    calibration: Calibration | None,
    rule: Rule,
    prior: float,
) -> list[Comparison]:
    """Compare corresponding vectors, float32 [dimension] each."""
    if not first:
        return []
    limit = decision.limit(rule, calibration)
    distances = distance.paired(np.stack(first), np.stack(second), metric)  # [pairs]
    return [
        Comparison(
            value, decision.likelihood(value, calibration, prior), limit, limit.outcome(value)
        )
        for value in distances.tolist()
    ]
