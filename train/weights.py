"""Weights of other people's making, from a file with torchvision's names into a network of ours.

In: `.pth` or `.pt` (read as tensors alone, so that no file can run code) or `.safetensors`. Out:
the network with all its weights but the last projection's replaced. What must never happen is that
some weights silently stay random: every name has to be there and to fit.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from twinserve.errors import ConfigError, DataError

SUFFIXES = (".pth", ".pt", ".safetensors")
PROJECTION = "fc."
# How many batches batch norm has seen changes nothing here, and older files do not say.
_COUNTER = "num_batches_tracked"
_SHOWN = 3


def load_weights(
    network: nn.Module, path: Path | str, cut_off: Collection[str] = frozenset()
) -> None:
    """Replace all weights of a network, except those of `fc`, by a file's.

    Args:
        network: with torchvision's names.
        path: of the file; its own `fc` is passed over.
        cut_off: names that the file may have beyond the network's, of layers that are cut off.

    Raises:
        ConfigError: no such file, or not one of `SUFFIXES`.
        DataError: a damaged file, or names or shapes that are not the network's; the first ones
            are named, and nothing is loaded.
    """
    given = {
        name: tensor
        for name, tensor in read_weights(path).items()
        if not name.startswith(PROJECTION) and not name.endswith(_COUNTER)
    }
    wanted = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.startswith(PROJECTION) and not name.endswith(_COUNTER)
    }
    _refuse(path, "lacks", [name for name in wanted if name not in given])
    _refuse(
        path,
        "has, beyond what the twin has,",
        [name for name in given if name not in wanted and name not in cut_off],
    )
    _refuse(
        path,
        "has in another shape",
        [
            f"{name} ({_shape(given[name])}, the twin's is {_shape(tensor)})"
            for name, tensor in wanted.items()
            if given[name].shape != tensor.shape
        ],
    )
    network.load_state_dict({name: given[name] for name in wanted}, strict=False)


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read a file of named tensors.

    Raises:
        ConfigError: no such file, or not one of `SUFFIXES`.
        DataError: a damaged file, or one that holds something else.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"weights is {str(path)!r}; it takes a {', '.join(SUFFIXES)} file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"weights is {str(path)!r}, which does not exist") from error
    except (
        *(OSError, RuntimeError, EOFError, ValueError, KeyError),
        *(pickle.UnpicklingError, SafetensorError),
    ) as error:
        raise DataError(
            f"the weights in {path} cannot be read ({str(error)[:200]}); save a network's "
            "state_dict(), tensors alone, and name that file"
        ) from error
    if not isinstance(document, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in document.items()
    ):
        raise DataError(
            f"{path} holds something other than tensors by name; save a network's state_dict()"
        )
    return document


def _refuse(path: Path | str, what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise DataError(
            f"the weights in {path} do not fit the twin: the file {what} "
            f"{', '.join(names[:_SHOWN])}{more}; check twin, stem, cut and color_order"
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
