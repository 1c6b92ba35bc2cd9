"""An MLP as a tensor twin: for vectors that something else made, such as features of a sensor."""

from __future__ import annotations

import math

from torch import nn

from twinserve.distance import Metric
from twinserve.manifest import TensorInput
from twinserve.train.twins import TensorTwin


def mlp(
    contract: TensorInput,
    *,
    dimension: int = 64,
    hidden: int = 256,
    metric: Metric = Metric.COSINE,
    normalized: bool = True,
) -> TensorTwin:
    """Build one hidden layer with batch norm and ReLU, and a projection to `dimension`."""
    body = nn.Sequential(
        nn.Flatten(),
        # Batch norm subtracts the mean, so a bias would be lost.
        nn.Linear(math.prod(contract.shape), hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, dimension),
    )
    return TensorTwin(
        body, contract=contract, dimension=dimension, metric=metric, normalized=normalized
    )
