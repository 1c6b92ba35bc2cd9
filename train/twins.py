"""The twin: from the pixels that serving sees to an embedding.

Both branches of a Siamese network are one twin, so there is one module, called once. It takes raw
uint8 pixels and normalises them inside, so that the exported graph holds all of it and a client
cannot get it wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from twinserve.distance import Metric
from twinserve.manifest import ImageInput
from twinserve.preprocess import DECODER
from twinserve.train.config import TrainConfig
from twinserve.train.heads import Head, unit


class Twin(nn.Module):
    """uint8 pixels [batch, height, width, channels] -> float32 embeddings [batch, dimension].

    Args:
        body: float32 [batch, channels, height, width] -> float32 [batch, dimension].
        contract: what pixels it takes.
        dimension: of the embedding.
        metric: that the loss trains for.
        normalized: whether embeddings are scaled to unit length.
        ink_inverted: whether brightness is turned around first.
        mean: per channel, of pixels in [0, 1] after any inversion.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        contract: ImageInput,
        dimension: int,
        metric: Metric,
        normalized: bool,
        ink_inverted: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.contract = contract
        self.dimension = dimension
        self.metric = metric
        self.normalized = normalized
        self.ink_inverted = ink_inverted
        channels = contract.channels
        self.register_buffer("mean", torch.tensor(mean or [0.0] * channels).view(1, channels, 1, 1))
        self.register_buffer("std", torch.tensor(std or [1.0] * channels).view(1, channels, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed uint8 pixels [batch, height, width, channels]."""
        embeddings: Tensor = self.body(self.prepare(pixels))
        if self.normalized:
            embeddings = unit(embeddings)
        return embeddings

    def prepare(self, pixels: Tensor) -> Tensor:
        """Normalise pixels: uint8 [batch, h, w, channels] -> float32 [batch, channels, h, w]."""
        prepared = pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0
        if self.ink_inverted:
            prepared = 1.0 - prepared
        return (prepared - self.mean) / self.std


class Siamese(nn.Module):
    """One twin on two inputs, and a head that compares the two embeddings.

    The twin is called once on both inputs concatenated, so that batch norm sees one batch and
    forward(a, b) equals forward(b, a) for a symmetric head.
    """

    def __init__(self, twin: Twin, head: Head) -> None:
        super().__init__()
        self.twin = twin
        self.head = head

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare corresponding rows: uint8 [batch, h, w, c] twice -> the head's output [batch]."""
        embeddings = self.twin(torch.cat([first, second]))
        left, right = embeddings.split(len(first))
        compared: Tensor = self.head(left, right)
        return compared


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
) -> Twin:
    """Build four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling, and a projection.

    The embedding network of Matching Networks (Vinyals et al., 2016) and Prototypical Networks
    (Snell et al., 2017), with a linear projection to `dimension` on top.
    """
    blocks: list[nn.Module] = []
    channels = contract.channels
    for _ in range(4):
        blocks += [
            # Batch norm subtracts the mean, so a bias would be lost.
            nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            # ReLU and max pooling commute; in this order ReLU has a quarter of the work.
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
        ]
        channels = width
    features = width * (contract.height // 16) * (contract.width // 16)
    body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(features, dimension))
    return Twin(
        body,
        contract=contract,
        dimension=dimension,
        metric=metric,
        normalized=normalized,
        ink_inverted=ink_inverted,
        mean=mean,
        std=std,
    )


def contract_of(config: TrainConfig) -> ImageInput:
    """Return the input contract that a config asks for."""
    return ImageInput(
        height=config.image_size,
        width=config.image_size,
        channels=config.channels,
        color_order=config.color_order,
        resize=config.resize,
        resample=config.resample,
        decoder=DECODER,
    )


def build(
    config: TrainConfig, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Twin:
    """Build the twin that a config names, with the torch seed's fresh weights."""
    return conv4(
        contract_of(config),
        dimension=config.dimension,
        width=config.width,
        metric=Metric(config.metric),
        normalized=config.normalized,
        ink_inverted=config.ink_inverted,
        mean=mean,
        std=std,
    )
