"""From a config to a fresh twin: which network, and what it knows before its first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from twinserve.distance import Metric
from twinserve.errors import TwinserveError
from twinserve.manifest import InputContract, TensorInput, TextInput
from twinserve.preprocess import Pixels
from twinserve.train import finetuning, own, vocabulary, words
from twinserve.train.config import ENCODERS, TrainConfig
from twinserve.train.conv4 import conv4
from twinserve.train.conv5 import conv5
from twinserve.train.data import Labelled
from twinserve.train.matryoshka import truncations_of
from twinserve.train.mlp import mlp
from twinserve.train.resnet import cut_off, resnet
from twinserve.train.twins import ImageTwin, TensorTwin, TextTwin, Twin
from twinserve.train.weights import load_weights

# Of the photographs in ImageNet, RGB in [0, 1]: what networks trained on them take.
IMAGENET_MEAN: tuple[float, ...] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, ...] = (0.229, 0.224, 0.225)
# What never varies has no deviation to divide by.
_LEAST_STD = 1e-3


def build(
    config: TrainConfig,
    contract: InputContract,
    tokenizer: str | None = None,
    blueprint: dict[str, Any] | None = None,
) -> Twin:
    """Build the twin that a config names: with the torch seed's fresh weights, or a folder's.

    Args:
        config: names the network and its sizes.
        contract: of the twin, of the config's modality.
        tokenizer: tokenizer.json of a text twin.
        blueprint: of an encoder or a twin of the user's own, as its checkpoint keeps it; None
            begins anew.

    Raises:
        ConfigError, DataError: an encoder's folder that does not fit, see `finetuning`; a twin of
            the user's own that cannot be built, see `own`.
    """
    twin = _network(config, contract, tokenizer, blueprint)
    twin.truncations = truncations_of(config, twin.dimension)
    if isinstance(twin, ImageTwin):
        twin.mirror_summed = config.mirror_sum
    return twin


def _network(
    config: TrainConfig,
    contract: InputContract,
    tokenizer: str | None,
    blueprint: dict[str, Any] | None,
) -> Twin:
    if config.is_own:
        return own.twin_of(config, contract, tokenizer, fresh=blueprint is None)
    metric, dimension, normalized = Metric(config.metric), config.dimension, config.normalized
    if isinstance(contract, TextInput):
        assert tokenizer is not None
        if config.twin == "text_encoder":
            return finetuning.text_twin(config, contract, tokenizer, blueprint)
        return words.words(
            contract,
            tokenizer,
            width=config.word_dimension,
            dimension=dimension,
            metric=metric,
            normalized=normalized,
        )
    if isinstance(contract, TensorInput):
        return mlp(
            contract,
            dimension=dimension,
            hidden=config.hidden,
            metric=metric,
            normalized=normalized,
        )
    if config.twin == "image_encoder":
        return finetuning.picture_twin(config, contract, blueprint)
    if config.twin in ("conv4", "conv5"):
        network = conv4 if config.twin == "conv4" else conv5
        return network(
            contract,
            dimension=dimension,
            width=config.width,
            metric=metric,
            normalized=normalized,
            ink_inverted=config.ink_inverted,
        )
    return resnet(
        _depth(config),
        contract,
        dimension=dimension,
        stem=config.stem,
        cut=config.cut,
        metric=metric,
        normalized=normalized,
        ink_inverted=config.ink_inverted,
    )


def as_it_came(config: TrainConfig, trained: Twin) -> Twin | None:
    """Build an encoder's twin as it stood before its first step.

    Args:
        config: of the training, whose folder is read again.
        trained: what became of it.

    Returns:
        The twin in eval mode; None where the folder is gone or holds other files by now, and where
        the twin began at random, which nobody would use.
    """
    if config.twin not in ENCODERS or trained.blueprint is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # as the loop does, so that a projection is the same one
        try:
            twin = build(config, trained.contract, trained.tokenizer)
        except TwinserveError:
            return None
    assert twin.blueprint is not None
    same = twin.blueprint["origin"]["files"] == trained.blueprint["origin"]["files"]
    return twin.eval() if same else None


def begin(twin: Twin, config: TrainConfig, training: Labelled) -> None:
    """Give a fresh twin what it takes from the training part, and from the config's weights file.

    Raises:
        ConfigError: no such weights file; a twin of the user's own that cannot be trained or
            exported.
        DataError: weights that do not fit.
        GateFailed: an encoder that cannot be exported.
    """
    if config.twin in ENCODERS:
        finetuning.try_export(twin)
        return  # its folder gave all that there is
    if isinstance(twin, ImageTwin):
        mean, std = (
            (IMAGENET_MEAN, IMAGENET_STD)
            if config.mean_std == "imagenet"
            else _mean_and_std(np.asarray(training.rows), config.ink_inverted)
        )
        twin.mean.copy_(torch.tensor(mean).view_as(twin.mean))
        twin.std.copy_(torch.tensor(std).view_as(twin.std))
        if config.weights and not config.is_own:
            load_weights(twin.body, config.weights, cut_off(_depth(config), config.cut))
    elif isinstance(twin, TensorTwin):
        rows = np.asarray(training.rows, dtype=np.float64)
        twin.mean.copy_(torch.from_numpy(rows.mean(axis=0)))
        twin.std.copy_(torch.from_numpy(np.maximum(rows.std(axis=0), _LEAST_STD)))
    elif isinstance(twin, TextTwin) and not config.is_own:
        vectors = None
        if config.weights:
            vectors = vocabulary.read_word_vectors(config.weights, config.word_dimension)
        words.begin(twin, training.rows, vectors)
    if config.is_own:
        own.try_out(twin, config.twin)


def put_channels_last(twin: Twin) -> None:
    """Lay the convolutions out as the pixels come: a step on a CPU takes a third less time."""
    for parameter in twin.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _depth(config: TrainConfig) -> int:
    return int(config.twin.removeprefix("resnet"))


def _mean_and_std(
    pixels: Pixels, ink_inverted: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in [0, 1], as the twin normalises them."""
    # Counts per value instead of a float copy of all pixels.
    values = np.arange(256) / 255.0
    if ink_inverted:
        values = 1.0 - values
    mean, std = [], []
    for channel in range(pixels.shape[-1]):
        share = np.bincount(pixels[..., channel].ravel(), minlength=256).astype(float)
        share /= share.sum()
        mean.append(float(share @ values))
        std.append(max(float(np.sqrt(share @ (values - mean[-1]) ** 2)), _LEAST_STD))
    return tuple(mean), tuple(std)
