"""Encoders of the transformers library, read from a local folder, as parts of a twin.

In: a folder with config.json and weights (safetensors, or a pickle that holds tensors alone). Out:
modules in float32 and eval mode, with plain ("eager") attention, since fused kernels cannot be
exported. No code that lies in the folder is run, and nothing is fetched. What must never happen is
a silent random layer: weights that the folder lacks are refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinserve.errors import ConfigError, DataError
from twinserve.train.heads import unit
from twinserve.train.quiet import quiet

# Of encoder-decoders only the encoder embeds.
_ENCODER_CLASSES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
# Pictures: which part of the output is the embedding.
IMAGE_POOLINGS = ("cls", "mean", "pooler")
_IMAGE_GUESS = {
    "vit": "cls",
    "deit": "cls",
    "beit": "mean",
    "dinov2": "cls",
    "dinov2_with_registers": "cls",
    "dinov3_vit": "cls",
    "resnet": "pooler",
    "regnet": "pooler",
    "convnext": "pooler",
    "convnextv2": "pooler",
    "swin": "pooler",
    "swinv2": "pooler",
    "mobilenet_v2": "pooler",
    "efficientnet": "pooler",
}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "Sigmoid": nn.Sigmoid,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
}


class Encoder(nn.Module):
    """A model of the transformers library, parts of which may stay as they are in training.

    Args:
        model: of the library.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.frozen: tuple[nn.Module, ...] = ()

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode; frozen parts stay in eval mode, without dropout and with their batch norm's
        statistics.
        """
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self


class TextEncoder(Encoder):
    """int64 ids and mask [batch, length] -> token states, float32 [batch, length, width]."""

    @property
    def width(self) -> int:
        """Of a token's state."""
        config: Any = self.model.config
        return int(getattr(config, "d_model", None) or config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """How many token ids the encoder knows, counted from 0."""
        model: Any = self.model
        return int(model.get_input_embeddings().num_embeddings)

    @contextlib.contextmanager
    def looking_up_once(self, ids: Tensor) -> Iterator[None]:
        """Look the embeddings of all tokens up once, for whatever is encoded inside.

        The gradient of a look-up is as large as the whole table, 46 MB of MiniLM's, so that a batch
        that runs in parts would spend a fifth of its step on adding such tables up.

        Args:
            ids: int64, any shape; holds every id that is encoded inside.
        """
        model: Any = self.model
        table: nn.Module = model.get_input_embeddings()
        known: Tensor = ids.unique()  # type: ignore[no-untyped-call]  # rising
        states: Tensor = table(known)  # [ids, width]

        def again(ids: Tensor) -> Tensor:
            return nn.functional.embedding(torch.searchsorted(known, ids), states)

        # An attribute of the instance goes before the class's method.
        table.forward = again
        try:
            yield
        finally:
            del table.forward

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode; type ids are left out, since every text is a first sentence."""
        states: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states


class ImageEncoder(Encoder):
    """float32 [batch, channels, height, width] -> vectors, float32 [batch, width].

    Args:
        model: of the transformers library.
        pooling: cls (the first token), mean (over places), or pooler (the model's own).
        crop: height and width of the centre that the model sees; None shows it everything.
    """

    def __init__(self, model: nn.Module, pooling: str, crop: tuple[int, int] | None = None) -> None:
        super().__init__(model)
        self.pooling = pooling
        self.crop = crop

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pictures that are normalised already."""
        if self.crop is not None:
            top = (pixels.shape[2] - self.crop[0]) // 2
            left = (pixels.shape[3] - self.crop[1]) // 2
            pixels = pixels[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        output = self.model(pixel_values=pixels)
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled.flatten(1)
        states: Tensor = output.last_hidden_state
        if states.dim() == 4:  # [batch, width, rows, columns]
            states = states.flatten(2).transpose(1, 2)
        return states[:, 0] if self.pooling == "cls" else states.mean(dim=1)


@dataclass(frozen=True, eq=False)
class Dense:
    """A layer behind pooling: weight float32 [out, in], bias float32 [out] or None."""

    weight: Tensor
    bias: Tensor | None
    activation: str  # of ACTIVATIONS


class Unit(nn.Module):
    """Rows scaled to length one."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Scale [batch, width]."""
        return unit(vectors)


class Cut(nn.Module):
    """The leading coordinates, as Matryoshka models are trained to be cut."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, vectors: Tensor) -> Tensor:
        """Cut [batch, width] to [batch, dimension]."""
        return vectors[:, : self.dimension]


def head(layers: Sequence[Dense | None], cut: int | None = None) -> nn.Sequential:
    """Build what follows pooling.

    Args:
        layers: in order; None scales to unit length.
        cut: keep so many leading coordinates.
    """
    modules: list[nn.Module] = []
    for layer in layers:
        if layer is None:
            modules.append(Unit())
            continue
        width_out, width_in = layer.weight.shape
        linear = nn.Linear(width_in, width_out, bias=layer.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(layer.weight)
            if layer.bias is not None:
                linear.bias.copy_(layer.bias)
        modules += [linear, ACTIVATIONS[layer.activation]()]
    if cut is not None:
        modules.append(Cut(cut))
    return nn.Sequential(*modules).eval()


def blank(architecture: str, config: str) -> nn.Module:
    """Build a model with weights of no meaning, to be filled from a checkpoint.

    Args:
        architecture: name of its class in the library.
        config: of the model, as `config_of` gives it.

    Raises:
        DataError: a class that this version of the library lacks, or a config that is none of its.
    """
    import transformers

    kind = getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise DataError(
            f"the checkpoint's encoder is a {architecture}, which transformers "
            f"{transformers.__version__} does not have; install the version that trained it"
        )
    with library_quiet():
        try:
            values = json.loads(config)
            made = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
            made._attn_implementation = "eager"
            model: nn.Module = kind(made)
        except Exception as error:  # whatever a foreign configuration may cause
            raise DataError(
                f"the checkpoint's {architecture} cannot be built ({_first_line(error)}); install "
                "the version of transformers that trained it"
            ) from error
    return model.float().eval()


def config_of(encoder: Encoder) -> str:
    """Return a model's configuration as JSON, without the folder that it came from."""
    config: Any = encoder.model.config
    values = json.loads(config.to_json_string(use_diff=False))
    values.pop("_name_or_path", None)
    return json.dumps(values, sort_keys=True)


def load_text(folder: Path) -> TextEncoder:
    """Read a text encoder.

    Raises:
        DataError: no encoder there, one that needs code of its own, or missing weights.
        ConfigError: an architecture whose inputs a text twin does not give.
    """
    config = _config(folder)
    kind = str(config.model_type)
    name = _ENCODER_CLASSES.get(kind)
    if getattr(config, "is_encoder_decoder", False) and name is None:
        raise ConfigError(
            f"{kind} encodes and decodes, and no encoder of it is known alone; "
            f"known ones are {', '.join(_ENCODER_CLASSES)}"
        )
    model = _load(folder, name or "AutoModel")
    without_pooler(model)
    return TextEncoder(model).eval()


def load_image(folder: Path, pooling: str, crop: tuple[int, int] | None = None) -> ImageEncoder:
    """Read a vision encoder; see `ImageEncoder`.

    Raises:
        DataError: no encoder there, one that needs code of its own, or missing weights.
        ConfigError: an unknown pooling.
    """
    if pooling not in IMAGE_POOLINGS:
        raise ConfigError(
            f"pooling is {pooling!r}; a picture's is one of {', '.join(IMAGE_POOLINGS)}"
        )
    model = _load(folder, "AutoModel", needs_pooler=pooling == "pooler")
    if pooling != "pooler":
        without_pooler(model)
    return ImageEncoder(model, pooling, crop).eval()


def image_pooling_guess(folder: Path) -> tuple[str, str] | None:
    """Return a vision encoder's usual pooling and its architecture; None where it is no such."""
    kind = str(getattr(_config(folder), "model_type", ""))
    return (_IMAGE_GUESS[kind], kind) if kind in _IMAGE_GUESS else None


def positions(folder: Path) -> int | None:
    """Return how many tokens the encoder has places for; None where it does not say."""
    return positions_of(_config(folder).to_dict())


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens an encoder of this config.json has places for; None where unsaid."""
    places = config.get("max_position_embeddings")
    if not isinstance(places, int) or places < 1:
        return None
    # RoBERTa and its kin count places from behind the padding id.
    kind = str(config.get("model_type"))
    if "roberta" in kind or kind in ("camembert", "mpnet", "longformer"):
        places -= int(config.get("pad_token_id") or 0) + 1
    return places


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors from .safetensors or a pickle, of which nothing but tensors is loaded.

    Raises:
        DataError: damaged, or not such a file.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): value for name, value in loaded.items()}
    except Exception as error:  # either library raises its own
        raise DataError(
            f"the weights in {path} cannot be read ({_first_line(error)}); copy them again"
        ) from error


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    with library_quiet():
        try:
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever a foreign configuration may cause
            raise DataError(
                f"the configuration in {folder} cannot be read ({_first_line(error)}); give a "
                "folder that transformers can load without code of the model's own"
            ) from error


def _load(folder: Path, class_name: str, *, needs_pooler: bool = False) -> nn.Module:
    import transformers

    with library_quiet():
        try:
            model, report = getattr(transformers, class_name).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # whatever foreign weights may cause
            raise DataError(
                f"the encoder in {folder} cannot be loaded ({_first_line(error)}); give a folder "
                "that transformers can load without code of the model's own"
            ) from error
    absent = sorted(
        str(name)
        for name in report["missing_keys"]
        if needs_pooler or not str(name).startswith("pooler.")
    )
    wrong = sorted(str(name) for name in report["mismatched_keys"])
    if absent or wrong:
        names = [*absent, *wrong]
        raise DataError(
            f"the weights in {folder} lack {len(names)} of the encoder's tensors, first "
            f"{names[0]}; they would be random: copy the model again, whole"
        )
    loaded: nn.Module = model
    return loaded.eval().requires_grad_(False)


def without_pooler(model: nn.Module) -> None:
    """Drop a layer that no embedding passes through; where weights lack it, it is random."""
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        model.pooler = None  # type: ignore[assignment]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextlib.contextmanager
def library_quiet() -> Iterator[None]:
    """Keep transformers' progress and advice off the user's terminal; errors still raise."""
    from transformers.utils import logging as of_library

    library: Any = of_library
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        with quiet(logging.ERROR):
            yield
    finally:
        if shown:
            library.enable_progress_bar()
