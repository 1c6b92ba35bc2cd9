"""conv4: the small convolutional network of the few-shot literature, as an image twin."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from twinserve.distance import Metric
from twinserve.manifest import ImageInput
from twinserve.train.convolutions import block
from twinserve.train.twins import ImageTwin


def conv4(
    contract: ImageInput,
    *,
    dimension: int = 64,
    width: int = 64,
    metric: Metric = Metric.COSINE,
    normalized: bool = True,
    ink_inverted: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageTwin:
    """Build four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling, and a projection.

    The embedding network of Matching Networks (Vinyals et al., 2016) and Prototypical Networks
    (Snell et al., 2017), with a linear projection to `dimension` on top.
    """
    blocks = block(contract.channels, width, pooled=True)
    for _ in range(3):
        blocks += block(width, width, pooled=True)
    features = width * (contract.height // 16) * (contract.width // 16)
    body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(features, dimension))
    return ImageTwin(
        body,
        contract=contract,
        dimension=dimension,
        metric=metric,
        normalized=normalized,
        ink_inverted=ink_inverted,
        mean=mean,
        std=std,
    )
