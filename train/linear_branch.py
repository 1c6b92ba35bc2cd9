"""A linear projection of the pixels beside a network, for half of the embedding.

Of few classes a network learns what tells just these apart; a projection of the whole picture at a
coarse size, as linear discriminants make one, errs elsewhere (Belhumeur, Hespanha and Kriegman,
"Eigenfaces vs. Fisherfaces", 1997). Both halves have unit length, so that the cosine of two
embeddings is the mean of the halves' cosines.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinserve.manifest import ImageInput
from twinserve.train.heads import unit

# Of the coarse picture, at most.
SIDE = 32
# A picture of one colour has no deviation to divide by.
_LEAST_STD = 1e-3


class WithLinearBranch(nn.Module):
    """float32 [batch, channels, height, width] -> float32 [batch, 2 * dimension].

    Args:
        body: the network, float32 [batch, channels, height, width] -> [batch, dimension].
        contract: of the pictures.
        dimension: of each half.
    """

    def __init__(self, body: nn.Module, contract: ImageInput, dimension: int) -> None:
        super().__init__()
        self.body = body
        sides = [max(1, side // SIDE) for side in (contract.height, contract.width)]
        self.coarse = nn.AvgPool2d((sides[0], sides[1]))
        places = (contract.height // sides[0]) * (contract.width // sides[1]) * contract.channels
        self.scaled = nn.BatchNorm1d(places, affine=False)
        self.linear = nn.Linear(places, dimension, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Embed prepared pictures: the network's half, then the linear one."""
        places = self.coarse(pictures).flatten(1)
        places = places - places.mean(dim=1, keepdim=True)  # each picture's own light is left out
        deviation = places.square().mean(dim=1, keepdim=True).sqrt()
        linear = self.linear(self.scaled(places / (deviation + _LEAST_STD)))
        return torch.cat([unit(self.body(pictures)), unit(linear)], dim=1)
