"""A twin of the user's own: `twin=module:callable`, imported, asked for a module, and tried out.

In: the name, and what the callable gives for the contract and the config. Out: a `Twin`, or a
sentence. What must never happen: hours of training that end in a network that cannot be exported,
so the twin is tried before the first step; and code that runs because a checkpoint from elsewhere
names it, so a checkpoint's module is imported only where the user named it in this process.
"""

from __future__ import annotations

import dataclasses
import importlib
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from twinserve.distance import Metric
from twinserve.errors import ConfigError, GateFailed
from twinserve.feed import input_names
from twinserve.manifest import ImageInput, InputContract, TensorInput, TextInput
from twinserve.train.config import TrainConfig
from twinserve.train.tracing import examples, fixed_axis, line_of, trace
from twinserve.train.twins import ImageTwin, TensorTwin, TextTwin, Twin

# Relative to the largest coordinate: what rounding may do, in torch and in onnxruntime.
_ROUNDING = 1e-4
_CONSTANT = 1e-6

# What this process was asked to import, by a config or by `ask`.
_asked: set[str] = set()


def ask(name: str) -> Callable[..., object]:
    """Import a twin of the user's own; checkpoints that name it may then be opened.

    Args:
        name: `module:callable`; the module is looked for on Python's path alone, never in a run
            folder.

    Raises:
        ConfigError: no such module, one that fails to import, or nothing to call in it.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _fails(name, "to import", error) from error
        raise ConfigError(
            f"twin is {name!r}, and there is no module {error.name} on Python's path; install it, "
            "or set PYTHONPATH to the folder that it lies in"
        ) from error
    except Exception as error:  # whatever the user's module may raise
        raise _fails(name, "to import", error) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [one for one in vars(found) if not one.startswith("_")]
            raise ConfigError(
                f"twin is {name!r}, and {module_name} has no {attribute}; it has "
                f"{', '.join(public[:10]) or 'nothing public'}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(
            f"twin is {name!r}, which is a {type(found).__name__} and cannot be called; name a "
            "function or class that takes the contract and the config"
        )
    _asked.add(name)
    called: Callable[..., object] = found
    return called


def refuse_unasked(name: str) -> None:
    """Refuse a checkpoint's twin that nobody asked this process to import.

    Raises:
        ConfigError: says how to ask.
    """
    if name not in _asked:
        raise ConfigError(
            f"the checkpoint's twin is {name!r}, code of somebody's own, which runs when it is "
            f"imported; where you trust it, give --import-twin {name} (in Python, "
            f"twinserve.train.own.ask({name!r}))"
        )


def twin_of(
    config: TrainConfig, contract: InputContract, tokenizer: str | None, *, fresh: bool
) -> Twin:
    """Call the user's callable, and make a twin of what it gives.

    A plain module takes what a body of ours takes: of pictures float32 [batch, channels, height,
    width], normalised; of vectors float32 [batch, *shape], normalised; of texts ids and mask, int64
    [batch, length] each. It gives float32 [batch, dimension]. A `Twin` is taken with its own
    arithmetic; metric, unit length and tokenizer are the config's.

    Args:
        config: names the callable; `weights` is empty where the twin is not `fresh`.
        contract: of the twin.
        tokenizer: tokenizer.json of a text twin.
        fresh: whether a training is to begin, not a checkpoint to be filled in.

    Raises:
        ConfigError: see `ask`; a callable that fails, or gives something else.
    """
    name = config.twin
    make = ask(name)
    asked = config if fresh else dataclasses.replace(config, weights="")
    try:
        made = make(contract, asked, **config.twin_parameters)
    except Exception as error:  # whatever the user's code may raise
        raise _fails(name, "when it is called with the contract and the config", error) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"{name} gives a {type(made).__name__}; it must give a torch.nn.Module, or a Twin of "
            "twinserve.train.twins"
        )
    twin = made if isinstance(made, Twin) else _wrapped(made, config, contract, tokenizer)
    if twin.contract != contract:
        raise ConfigError(
            f"{name} gives a twin of another contract ({twin.contract}); build it with the one "
            "that it is called with"
        )
    if twin.dimension != config.dimension:
        raise ConfigError(
            f"{name} gives a twin of {twin.dimension} coordinates, and dimension is "
            f"{config.dimension}; set dimension={twin.dimension}"
        )
    twin.metric, twin.normalized = Metric(config.metric), config.normalized
    twin.tokenizer = tokenizer
    twin.blueprint = {
        "origin": {"kind": "own", "twin": name, "made_with": {"torch": str(torch.__version__)}}
    }
    return twin


def try_out(twin: Twin, name: str) -> None:
    """Run a fresh twin on drawn inputs, and write it as ONNX, before any time is lost.

    Weights, statistics and torch's generator are afterwards as they were.

    Raises:
        ConfigError: it fails; gives another shape or type than float32 [batch, dimension], NaN,
            the same embedding for different inputs, or one that depends on the rest of the batch
            or on padding; has nothing to train; or cannot be exported.
    """
    training = twin.training
    # As bytes alone could be lost to a module that writes into itself: its statistics too.
    before = {key: tensor.detach().clone() for key, tensor in twin.state_dict().items()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inputs = _drawn(twin)
            _try_training(twin.train(), name, inputs)
            twin.load_state_dict(before)
            twin.eval()
            with torch.no_grad():
                _try_embeddings(twin, name, inputs)
                _try_export(twin, name, inputs)
    finally:
        twin.train(training)


def _wrapped(
    module: nn.Module, config: TrainConfig, contract: InputContract, tokenizer: str | None
) -> Twin:
    shared: dict[str, Any] = {
        "dimension": config.dimension,
        "metric": Metric(config.metric),
        "normalized": config.normalized,
    }
    if isinstance(contract, ImageInput):
        return ImageTwin(module, contract=contract, ink_inverted=config.ink_inverted, **shared)
    if isinstance(contract, TensorInput):
        return TensorTwin(module, contract=contract, **shared)
    assert tokenizer is not None
    return TextTwin(module, contract=contract, tokenizer=tokenizer, pooling=(), **shared)


def _try_training(twin: Twin, name: str, inputs: tuple[Tensor, ...]) -> None:
    embeddings = _embeddings(twin, name, inputs)
    weights = [weight for weight in twin.parameters() if weight.requires_grad]
    if not weights or not embeddings.requires_grad:
        raise ConfigError(
            f"{name} gives a module with nothing to train: its embeddings hang on no weight that "
            "requires a gradient"
        )


def _try_embeddings(twin: Twin, name: str, inputs: tuple[Tensor, ...]) -> None:
    embeddings = _embeddings(twin, name, inputs)
    largest = max(float(embeddings.abs().max()), 1e-12)
    if float((embeddings - embeddings[0]).abs().max()) <= _CONSTANT * largest:
        raise ConfigError(
            f"{name} gives the same embedding for different inputs, so there is nothing to compare;"
            " look whether its input reaches its output"
        )
    alone = torch.cat(
        [_embeddings(twin, name, tuple(one[row : row + 1] for one in inputs)) for row in range(3)]
    )
    if float((embeddings - alone).abs().max()) > _ROUNDING * largest:
        raise ConfigError(
            f"{name} gives a row another embedding alone than among others, in eval mode too; "
            "take nothing from the rest of the batch (mean over dim 0, batch norm without "
            "statistics)"
        )
    if isinstance(twin.contract, TextInput):
        padded = tuple(nn.functional.pad(one, (0, 3)) for one in inputs)
        padded[0][:, -3:] = twin.contract.pad_id
        apart = float((_embeddings(twin, name, padded) - embeddings).abs().max())
        if apart > _ROUNDING * largest:
            raise ConfigError(
                f"{name} gives a text another embedding padded than alone; leave out the tokens "
                "whose mask is 0"
            )


def _try_export(twin: Twin, name: str, inputs: tuple[Tensor, ...]) -> None:
    import onnxruntime  # which no other training needs

    try:
        model = trace(twin)
    except GateFailed as error:
        raise ConfigError(f"{name} could be trained and not exported: {error.message}") from error
    if axis := fixed_axis(model, twin.contract):
        raise ConfigError(
            f"{name} could be trained and not exported: its graph takes {axis} only; use no loop "
            "over rows or tokens, and no size written as a number"
        )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    # Fewer rows than were traced, so that what was burnt into the graph shows.
    pair = [one[:2] for one in inputs]
    fed = zip(input_names(twin.contract), pair, strict=True)
    (found,) = session.run(None, {key: one.numpy() for key, one in fed})
    expected = twin(*pair).numpy()
    largest = max(float(np.abs(expected).max()), 1.0)
    if found.shape != expected.shape or np.abs(found - expected).max() > 10 * _ROUNDING * largest:
        raise ConfigError(
            f"{name} could be trained and not exported: its graph gives other embeddings than the "
            "module; look for what is done otherwise while exporting, or drawn at random in eval "
            "mode"
        )


def _embeddings(twin: Twin, name: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return what the twin gives, unscaled where it scales, once its shape and type are right."""
    try:
        given: object = (
            twin(*inputs) if type(twin).vectors is Twin.vectors else twin.vectors(inputs)
        )
    except Exception as error:  # whatever the user's code may raise
        shapes = ", ".join(str(list(one.shape)) for one in inputs)
        raise _fails(name, f"on a batch of {shapes}", error) from error
    if not isinstance(given, Tensor):
        raise ConfigError(
            f"{name} gives a {type(given).__name__} for a batch; it must give one tensor, float32 "
            f"[batch, {twin.dimension}]"
        )
    if tuple(given.shape) != (len(inputs[0]), twin.dimension) or given.dtype != torch.float32:
        shaped = given.dim() == 2 and len(given) == len(inputs[0])
        advice = f", or set dimension={given.shape[1]}" if shaped and given.shape[1] else ""
        raise ConfigError(
            f"{name} gives {str(given.dtype).removeprefix('torch.')} {list(given.shape)} for a "
            f"batch of {len(inputs[0])}; it must give float32 [{len(inputs[0])}, "
            f"{twin.dimension}]{advice}"
        )
    if not bool(given.detach().isfinite().all()):
        raise ConfigError(f"{name} gives NaN or infinity for drawn inputs; look at its first layer")
    return given


def _drawn(twin: Twin) -> tuple[Tensor, ...]:
    """Draw three inputs, all different."""
    first, *others = examples(twin.contract)
    if isinstance(twin.contract, TextInput):
        assert twin.tokenizer is not None
        known = Tokenizer.from_str(twin.tokenizer).get_vocab_size()
        ids = torch.randint(0, known, first.shape)
        ids[0, 0] = known - 1  # so that a table too small for the tokenizer shows
        return (ids, *others)
    if first.dtype.is_floating_point:
        return (torch.randn(first.shape, dtype=first.dtype),)
    return (torch.randint(0, 256, first.shape).to(first.dtype),)


def _fails(name: str, when: str, error: Exception) -> ConfigError:
    place = line_of("".join(traceback.format_exception(error)))
    said = str(error).strip().splitlines()
    words = f"{type(error).__name__}: {said[0][:300]}" if said else type(error).__name__
    return ConfigError(
        f"{name} fails {when} ({words}{f'; {place}' if place else ''}); mend it "
        "(TWINSERVE_DEBUG=1 shows the traceback)"
    )
