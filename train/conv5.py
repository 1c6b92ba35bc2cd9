"""conv5: five convolutions, the first a coarse one, and a projection, for small drawings.

At equal time it learns more than `conv4` does: it sees finer pictures, its 7x7 convolution with a
stride of 4 leaves maps as small as conv4's second, and its width stands where maps are small, so
that the time goes into products of matrices, which a processor with units for bfloat16 does fast.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from twinserve.distance import Metric
from twinserve.manifest import ImageInput
from twinserve.train.convolutions import block
from twinserve.train.twins import ImageTwin

STRIDE = 4


def conv5(
    contract: ImageInput,
    *,
    dimension: int = 128,
    width: int = 64,
    metric: Metric = Metric.COSINE,
    normalized: bool = True,
    ink_inverted: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageTwin:
    """Build a 7x7 convolution of stride 4, four of 3x3 with two poolings, and a projection.

    Of 56 pixels: 14 x 14 places with `width` channels, twice 1.5 times as many, 7 x 7 places with
    twice as many, pooled to 3 x 3. All of these places are projected, not their mean, since where a
    stroke lies tells characters apart.
    """
    broad, broadest = width * 3 // 2, width * 2
    blocks = [
        *block(contract.channels, width, size=7, stride=STRIDE),
        *block(width, broad),
        *block(broad, broad, pooled=True),
        *block(broad, broadest),
        *block(broadest, broadest, pooled=True),
    ]
    height, breadth = (_places(side) for side in (contract.height, contract.width))
    body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(broadest * height * breadth, dimension))
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


def _places(side: int) -> int:
    """Return how many places along a side of so many pixels are left in the end."""
    strided = (side - 1) // STRIDE + 1
    return strided // 2 // 2
