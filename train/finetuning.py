"""Encoders made elsewhere as twins to be trained on: read from a folder, or from a checkpoint.

In: the folder that a config's `weights` names, by its path or by its model's name in the cache of
Hugging Face. Out: the input contract and tokenizer that it states, and a twin with its weights,
parts of which may be frozen. The twin keeps a blueprint, with which a checkpoint builds it again
where the folder is not at hand.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from twinserve.distance import Metric
from twinserve.errors import ConfigError, DataError
from twinserve.manifest import ImageInput, TextInput
from twinserve.tokens import Tokenizer
from twinserve.train import encoders
from twinserve.train.config import WHOLE_ENCODER, TrainConfig
from twinserve.train.encoders import Dense, Encoder, ImageEncoder, TextEncoder
from twinserve.train.pretrained import modules, pictures
from twinserve.train.pretrained.folders import check_size, folder_of, read_json, weight_files
from twinserve.train.pretrained.settings import Answers, Settings
from twinserve.train.tracing import trace
from twinserve.train.twins import ImageTwin, TextTwin, Twin

# So many texts of the training part must get the ids that the library's own tokenizer gives.
_TEXTS_COMPARED = 64
# Architectures that the tests export.
_KNOWN_TO_EXPORT = ("BertModel", "Dinov2Model", "ResNetModel", "ViTModel")
# What stands before the first layer, wherever a model keeps it.
_BEFORE_LAYERS = ("embed", "relative_attention_bias")

Blueprint = dict[str, Any]
AnyTwin = TypeVar("AnyTwin", bound=Twin)


class Projection(nn.Linear):
    """The layer that brings embeddings to the config's dimension; it begins at random."""

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__(width, dimension)
        # Angles stay nearly as they are at first.
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)


def text_input(config: TrainConfig, texts: Sequence[str]) -> tuple[TextInput, str]:
    """Read the input contract that a text encoder's folder states, and its tokenizer.

    Args:
        config: names the folder, and the longest text where the folder allows longer ones.
        texts: of the training part; some are held against the library's own tokenizer.

    Raises:
        ConfigError: no such folder, or a model of another kind.
        DataError: no weights or no tokenizer there, or one that is not the library's.
        ManifestError: a tokenizer that cannot be read.
    """
    from twinserve.train.pretrained.text import read_contract

    settings = _settings(config)
    plan = _plan(config, settings)
    limits = (config.max_tokens, plan.max_tokens, encoders.positions(plan.encoder))
    shortest = min(limit for limit in limits if limit is not None)
    settings = dataclasses.replace(settings, max_tokens=shortest)
    contract, tokenizer, _ = read_contract(plan, texts[:_TEXTS_COMPARED], settings, Answers())
    return contract, tokenizer


def picture_input(config: TrainConfig) -> ImageInput:
    """Read the input contract that a vision encoder's folder states.

    Raises:
        ConfigError: no such folder, a model of another kind, or pixels that cannot be repeated.
        DataError: no weights there.
    """
    folder = _picture_folder(config)
    return pictures.stated(read_json(folder / pictures.FILE), Settings(), Answers()).contract


def text_twin(
    config: TrainConfig, contract: TextInput, tokenizer: str, blueprint: Blueprint | None = None
) -> TextTwin:
    """Build a text encoder's twin.

    Args:
        config: names the folder, the dimension, and what is frozen.
        contract: of the twin.
        tokenizer: tokenizer.json.
        blueprint: of a checkpoint, which gives the weights; None reads the folder.

    Raises:
        ConfigError, DataError, ManifestError: a folder, pooling, dimension or tokenizer that does
            not fit.
    """
    from twinserve.train.pretrained.text import origin_of, width_of

    _require_library()
    layers: tuple[Dense | None, ...]
    if blueprint is None:
        plan = _plan(config, _settings(config))
        check_size(weight_files(plan.encoder))
        encoder = encoders.load_text(plan.encoder)
        largest = Tokenizer(tokenizer, contract).largest_id
        if largest >= encoder.vocabulary:
            raise DataError(
                f"the tokenizer in {config.weights} gives ids up to {largest}, and the encoder "
                f"knows them up to {encoder.vocabulary - 1}; copy the tokenizer that belongs to it"
            )
        pooling, layers, cut = plan.pooling, plan.layers, plan.cut
        blueprint = {
            "architecture": type(encoder.model).__name__,
            "config": encoders.config_of(encoder),
            "pooling": list(pooling),
            "layers": [_shape(layer) for layer in layers],
            "cut": cut,
            "origin": _named(config, origin_of(_folder(config), plan, encoder)),
        }
    else:
        model = encoders.blank(blueprint["architecture"], blueprint["config"])
        encoders.without_pooler(model)
        encoder = TextEncoder(model)
        pooling, cut = tuple(blueprint["pooling"]), blueprint["cut"]
        layers = tuple(_of_shape(shape) for shape in blueprint["layers"])
    width = width_of(encoder, pooling, layers)
    head = encoders.head(layers, cut)
    dimension, projection = _projected(width if cut is None else min(cut, width), config)
    if projection is not None:
        head.append(projection)
    twin = TextTwin(
        encoder,
        contract=contract,
        tokenizer=tokenizer,
        dimension=dimension,
        metric=Metric(config.metric),
        normalized=config.normalized,
        pooling=pooling,
        head=head,
    )
    return _finished(twin, encoder, config, blueprint)


def picture_twin(
    config: TrainConfig, contract: ImageInput, blueprint: Blueprint | None = None
) -> ImageTwin:
    """Build a vision encoder's twin; see `text_twin`.

    Raises:
        ConfigError, DataError, ManifestError: a folder, pooling or dimension that does not fit.
    """
    from twinserve.train.pretrained.picture import read_twin

    _require_library()
    if blueprint is None:
        settings = Settings(
            pooling=(config.pooling,) if config.pooling else None,
            metric=Metric(config.metric),
            normalize=config.normalized,
        )
        read, origin = read_twin(_picture_folder(config), settings, Answers())
        encoder, width = read.body, read.dimension
        assert isinstance(encoder, ImageEncoder)
        mean, std = (values.flatten().tolist() for values in (read.mean, read.std))
        blueprint = {
            "architecture": type(encoder.model).__name__,
            "config": encoders.config_of(encoder),
            "pooling": encoder.pooling,
            "crop": None if encoder.crop is None else list(encoder.crop),
            "width": width,
            "origin": _named(config, origin),
        }
    else:
        model = encoders.blank(blueprint["architecture"], blueprint["config"])
        if blueprint["pooling"] != "pooler":
            encoders.without_pooler(model)
        crop = blueprint["crop"]
        encoder = ImageEncoder(
            model, blueprint["pooling"], None if crop is None else (crop[0], crop[1])
        )
        width, mean, std = blueprint["width"], None, None
    dimension, projection = _projected(width, config)
    twin = ImageTwin(
        encoder if projection is None else nn.Sequential(encoder, projection),
        contract=contract,
        dimension=dimension,
        metric=Metric(config.metric),
        normalized=config.normalized,
        mean=mean,
        std=std,
    )
    return _finished(twin, encoder, config, blueprint)


def try_export(twin: Twin) -> None:
    """Write a twin as ONNX and throw it away, unless its architecture is known to be written.

    It takes seconds, and an operation that ONNX lacks would otherwise show after the training.

    Raises:
        GateFailed: it cannot be exported.
    """
    encoder = encoder_of(twin)
    if encoder is not None and type(encoder.model).__name__ not in _KNOWN_TO_EXPORT:
        trace(twin)


def encoder_of(twin: Twin) -> Encoder | None:
    """Return the encoder in a twin, None where it is a network of our own."""
    return next((module for module in twin.modules() if isinstance(module, Encoder)), None)


def depths(encoder: Encoder) -> tuple[dict[nn.Parameter, int], int]:
    """Say how deep each weight of an encoder lies.

    Returns:
        0 for what stands before the first layer (the embedding of tokens or patches), then the
        layer's number from 1, and one more than the last for what stands behind them; and how many
        layers there are.

    Raises:
        ConfigError: an architecture whose layers cannot be told apart.
    """
    prefix, layers = _layers(encoder.model)
    found: dict[nn.Parameter, int] = {}
    behind = False
    for name, parameter in encoder.model.named_parameters():
        if name.startswith(prefix):
            behind = True
            found[parameter] = int(name.removeprefix(prefix).partition(".")[0]) + 1
        elif not behind or any(part in name for part in _BEFORE_LAYERS):
            found[parameter] = 0
        else:
            found[parameter] = layers + 1
    return found, layers


def _freeze(encoder: Encoder, freeze: str) -> None:
    """Keep weights, dropout and statistics of an encoder's lower part as they are."""
    encoder.requires_grad_(True)
    if not freeze:
        return
    if freeze == WHOLE_ENCODER:
        encoder.requires_grad_(False)
    else:
        found, layers = depths(encoder)
        if int(freeze) > layers:
            raise ConfigError(
                f"freeze is {freeze}, and the encoder has {layers} layers; give fewer, or "
                f"freeze={WHOLE_ENCODER}"
            )
        for parameter, depth in found.items():
            parameter.requires_grad_(depth > int(freeze))
    encoder.frozen = tuple(_frozen_modules(encoder.model))


def _frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            yield module


def _layers(model: nn.Module) -> tuple[str, int]:
    """Return what the names of a model's layers begin with, and how many there are."""
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(
            name.startswith(f"{other}.") for other in outermost
        ):
            outermost[name] = module
    if not outermost:
        raise ConfigError(
            f"the layers of a {type(model).__name__} cannot be told apart; set "
            f"freeze={WHOLE_ENCODER} or unset it, and leave layer_decay at 1"
        )
    name, layers = max(
        outermost.items(), key=lambda item: sum(weight.numel() for weight in item[1].parameters())
    )
    return f"{name}.", len(layers)


def _projected(width: int, config: TrainConfig) -> tuple[int, Projection | None]:
    """Return the embedding's dimension, and the projection that it takes."""
    if config.dimension > width:
        raise ConfigError(
            f"dimension is {config.dimension}, and the encoder gives {width} coordinates; set "
            "fewer, or dimension=0 for all of them"
        )
    if config.dimension in (0, width):
        return width, None
    return config.dimension, Projection(width, config.dimension)


def _finished(
    twin: AnyTwin, encoder: Encoder, config: TrainConfig, blueprint: Blueprint
) -> AnyTwin:
    """Freeze what is to stay, and see that something is left to train."""
    _freeze(encoder, config.freeze)
    if not any(parameter.requires_grad for parameter in twin.parameters()):
        raise ConfigError(
            "freeze leaves nothing to train: set dimension below "
            f"{twin.dimension}, for a projection behind the encoder, or freeze fewer layers"
        )
    twin.blueprint = blueprint
    return twin.eval()


def _settings(config: TrainConfig) -> Settings:
    words = tuple(word for word in config.pooling.replace("+", ",").split(",") if word)
    return Settings(pooling=words or None)


def _plan(config: TrainConfig, settings: Settings) -> modules.Plan:
    folder = _folder(config)
    if not modules.is_sentence_transformer(folder) and (folder / pictures.FILE).is_file():
        raise ConfigError(f"{folder} holds a model of pictures; set twin=image_encoder")
    plan = modules.plan_of(folder, settings, Answers())
    _require_weights(plan.encoder)
    return plan


def _picture_folder(config: TrainConfig) -> Path:
    folder = _folder(config)
    if not (folder / pictures.FILE).is_file():
        raise ConfigError(
            f"{folder} has no {pictures.FILE}, which says how pictures are prepared; copy it "
            "there, or set twin=text_encoder for a model of texts"
        )
    _require_weights(folder)
    return folder


def _folder(config: TrainConfig) -> Path:
    _require_library()
    return folder_of(config.weights)


def _named(config: TrainConfig, origin: dict[str, Any]) -> dict[str, Any]:
    """Add the name and revision of a model that was taken from the cache; a path tells nothing."""
    if Path(config.weights).is_dir():
        return origin
    return {**origin, "name": config.weights, "revision": _folder(config).name}


def _require_weights(folder: Path) -> None:
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise DataError(
            f"{folder} lacks config.json or the weights (model.safetensors or pytorch_model.bin); "
            "copy the model again, whole. An ONNX file alone can be imported, and not trained on"
        )


def _require_library() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            "an encoder takes the transformers library, which is not installed; run "
            "pip install 'twinserve[train]'"
        )


def _shape(layer: Dense | None) -> list[Any] | None:
    if layer is None:
        return None
    return [*layer.weight.shape, layer.bias is not None, layer.activation]


def _of_shape(shape: list[Any] | None) -> Dense | None:
    if shape is None:
        return None
    width_out, width_in, has_bias, activation = shape
    bias = torch.zeros(width_out) if has_bias else None
    return Dense(torch.zeros(width_out, width_in), bias, activation)
