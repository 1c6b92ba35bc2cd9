"""From a config to a fresh twin: which network, under which input contract."""

from __future__ import annotations

from collections.abc import Sequence

from twinserve.distance import Metric
from twinserve.manifest import ImageInput
from twinserve.preprocess import DECODER
from twinserve.train.config import TrainConfig
from twinserve.train.conv4 import conv4
from twinserve.train.resnet import resnet
from twinserve.train.twins import Twin


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
    if config.twin.startswith("resnet"):
        return resnet(
            int(config.twin.removeprefix("resnet")),
            contract_of(config),
            dimension=config.dimension,
            stem=config.stem,
            metric=Metric(config.metric),
            normalized=config.normalized,
            ink_inverted=config.ink_inverted,
            mean=mean,
            std=std,
        )
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
