"""What a text model's folder says of itself: encoder, pooling, layers behind it, prompts, length.

In: a folder as sentence-transformers saves it (modules.json and a folder per module), or only a
config.json of transformers. Out: a `Plan`. A module or setting that a twin could not repeat is
refused rather than passed over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinserve.errors import ConfigError, DataError
from twinserve.train.encoders import ACTIVATIONS, Dense, load_tensors
from twinserve.train.pooling import MODES
from twinserve.train.pretrained.folders import WEIGHTS, read_json
from twinserve.train.pretrained.settings import Answers, Settings

# In the order in which sentence-transformers puts several side by side.
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ORDER = tuple(_POOLINGS.values())
_KNOWN_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
# Decoders read from left to right, so that only the last token has seen the whole text.
_LAST_TOKEN_MODELS = ("gpt2", "gptj", "gpt_neo", "llama", "mistral", "qwen2", "qwen3", "gemma")


@dataclass(frozen=True, eq=False)
class Plan:
    """How a text model makes an embedding, as its folder says."""

    encoder: Path  # folder of config.json and weights
    pooling: tuple[str, ...]  # () where the encoder pools by itself
    layers: tuple[Dense | None, ...]  # behind pooling; None scales to unit length
    normalized: bool  # whether the last step is unit length
    lower: bool  # texts are put into lower case first
    max_tokens: int | None
    prompts: dict[str, str]
    default_prompt: str
    similarity: object  # name of the function, None where no file says
    cut: int | None  # keep so many leading coordinates
    matryoshka: object  # list of dimensions, None where no file says
    files: tuple[Path, ...]  # all that was read


def is_sentence_transformer(folder: Path) -> bool:
    """Whether a folder lists modules."""
    return (folder / "modules.json").is_file()


def encoder_folder(folder: Path) -> Path:
    """Return where a folder's encoder lies: its first module, or the folder itself.

    Raises:
        ConfigError: a module that is unknown.
        DataError: a damaged list.
    """
    listed = _modules(folder) if is_sentence_transformer(folder) else []
    return listed[0][1] if listed else folder


def plan_of(folder: Path, settings: Settings, answers: Answers) -> Plan:
    """Read a folder.

    Raises:
        ConfigError: a module, pooling or activation that is unknown.
        DataError: damaged files.
    """
    stated = read_json(folder / "config_sentence_transformers.json")
    if is_sentence_transformer(folder):
        return _listed(folder, stated, settings, answers)
    kind = str(read_json(folder / "config.json").get("model_type", ""))
    if any(kind.startswith(name) for name in _LAST_TOKEN_MODELS):
        guess, because = ("lasttoken",), f"{kind} reads from left to right"
    else:
        guess, because = ("mean",), "most encoders of sentences pool so; no file says"
    pooling = answers.guess("pooling", settings.pooling, guess, because, "--pooling")
    because = "distances by angle do not change by it"
    normalized = answers.guess("unit length", settings.normalize, True, because, "--normalize")
    return _plan(folder, folder, stated, checked_pooling(pooling), (), normalized)


def _listed(folder: Path, stated: dict[str, Any], settings: Settings, answers: Answers) -> Plan:
    listed = _modules(folder)
    kinds = [kind for kind, _ in listed]
    if kinds[:1] != ["Transformer"] or "Transformer" in kinds[1:] or kinds.count("Pooling") > 1:
        raise ConfigError(
            f"modules.json lists {', '.join(kinds) or 'nothing'}; a text twin is one Transformer, "
            "then Pooling, then Dense and Normalize"
        )
    pooling: tuple[str, ...] = ()
    layers: list[Dense | None] = []
    files = [folder / "modules.json"]
    for kind, place in listed[1:]:
        if kind == "Pooling":
            if layers:
                raise ConfigError("modules.json pools behind other layers; no text twin does")
            pooling = _pooling(place)
            files.append(place / "config.json")
        elif kind == "Dense":
            layers.append(_dense(place))
            files += [place / "config.json", _weights(place)]
        elif kind == "Normalize":
            layers.append(None)
    if not pooling:
        raise ConfigError("modules.json lists no Pooling; import the folder of the encoder alone")
    pooling = answers.read("pooling", settings.pooling, pooling, "1_Pooling", "--pooling")
    last = bool(layers) and layers[-1] is None
    if last:
        layers.pop()
    normalized = answers.read(
        "unit length", settings.normalize, last, "modules.json", "--normalize"
    )
    return _plan(
        folder,
        listed[0][1],
        stated,
        checked_pooling(pooling),
        tuple(layers),
        normalized,
        tuple(files),
    )


def _plan(
    folder: Path,
    encoder: Path,
    stated: dict[str, Any],
    pooling: tuple[str, ...],
    layers: tuple[Dense | None, ...],
    normalized: bool,
    files: tuple[Path, ...] = (),
) -> Plan:
    lengths = sorted(encoder.glob("sentence_*_config.json"))
    length = read_json(lengths[0]) if lengths else {}
    tokens = length.get("max_seq_length")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise DataError(f"{lengths[0].name} gives max_seq_length {tokens!r}, no number of tokens")
    if tokens is None:
        most = read_json(encoder / "tokenizer_config.json").get("model_max_length")
        # The library writes 1e30 where there is none.
        tokens = most if type(most) is int and 0 < most < 1 << 20 else None
    prompts = stated.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(v, str) for v in prompts.values()):
        raise DataError("config_sentence_transformers.json holds prompts that are no texts")
    cut = stated.get("truncate_dim")
    read = [*files, encoder / "config.json", folder / "config_sentence_transformers.json", *lengths]
    return Plan(
        encoder=encoder,
        pooling=pooling,
        layers=layers,
        normalized=normalized,
        lower=length.get("do_lower_case") is True,
        max_tokens=tokens,
        prompts=dict(prompts),
        default_prompt=stated.get("default_prompt_name") or "",
        similarity=stated.get("similarity_fn_name"),
        cut=cut if type(cut) is int and cut > 0 else None,
        matryoshka=stated.get("matryoshka_dims")
        or read_json(encoder / "config.json").get("matryoshka_dims"),
        files=tuple(file for file in read if file.is_file()),
    )


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return each module's class and folder, in order."""
    try:
        raw = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        listed = [(str(entry["type"]).rsplit(".", 1)[-1], str(entry["path"])) for entry in raw]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"modules.json does not list modules ({error}); copy the model again"
        ) from error
    for kind, _ in listed:
        if kind not in _KNOWN_MODULES:
            raise ConfigError(
                f"modules.json lists {kind}, which a twin cannot repeat; known modules are "
                f"{', '.join(_KNOWN_MODULES)}: export the model to ONNX with its own tools and "
                "import that file"
            )
    home = folder.resolve()
    for _, place in listed:
        if not (folder / place).resolve().is_relative_to(home):
            raise DataError(f"modules.json leads out of the model's folder: {place!r}")
    return [(kind, folder / place) for kind, place in listed]


def _pooling(place: Path) -> tuple[str, ...]:
    config = read_json(place / "config.json")
    if not config:
        raise DataError(f"{place.name}/config.json is missing; copy the model again, whole")
    if config.get("include_prompt") is False:
        raise ConfigError(
            f"{place.name} leaves the prompt's tokens out of the pooling, which a twin cannot: its "
            "prompts are part of the text"
        )
    named = config.get("pooling_mode")
    if named is not None:
        return tuple(named.split("+")) if isinstance(named, str) else tuple(named)
    for key, value in config.items():
        if key.startswith("pooling_mode_") and value is True and key not in _POOLINGS:
            raise ConfigError(
                f"{place.name} pools by {key}, which is unknown; known are {', '.join(_POOLINGS)}"
            )
    return tuple(mode for key, mode in _POOLINGS.items() if config.get(key) is True)


def checked_pooling(pooling: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modes, each once, in the order in which they stand side by side.

    Raises:
        ConfigError: an unknown one, or none.
    """
    unknown = [mode for mode in pooling if mode not in MODES]
    if unknown or not pooling:
        raise ConfigError(
            f"pooling is {unknown[0] if unknown else 'nothing'!r}; "
            f"known are {', '.join(_ORDER)}, and several joined by +"
        )
    return tuple(sorted(set(pooling), key=_ORDER.index))


def _dense(place: Path) -> Dense:
    config = read_json(place / "config.json")
    named = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = named.rsplit(".", 1)[-1]
    # Looked up in a list of ours: the folder may name any callable there is.
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"{place.name} has the activation {named!r}, which a twin cannot repeat; "
            f"known are {', '.join(ACTIVATIONS)}"
        )
    tensors = load_tensors(_weights(place))
    weight = tensors.get("linear.weight")
    if weight is None or weight.dim() != 2:
        raise DataError(f"{place.name} holds no linear.weight; copy the model again, whole")
    bias = tensors.get("linear.bias")
    return Dense(weight.float(), None if bias is None else bias.float(), activation)


def _weights(place: Path) -> Path:
    for name in WEIGHTS:
        if (place / name).is_file():
            return place / name
    raise DataError(f"{place.name} has no weights; copy the model again, whole")
