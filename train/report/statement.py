"""What a run says of itself: its data, its settings, and what it was made with.

In: a run. Out: names and values, as text.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata

from twinserve import __version__
from twinserve.manifest import ImageInput, InputContract, TextInput
from twinserve.train.checkpoint import Run
from twinserve.train.config import TrainConfig

_PACKAGES = ("torch", "numpy", "pillow", "tokenizers")


def about(run: Run, whole: str, results: dict[str, object]) -> list[tuple[str, str]]:
    """Say where the data came from, what the twin takes and gives, and how the training went."""
    twin = run.twin
    return [
        ("data", run.config.data),
        ("digest of the data (sha256)", run.data_digest),
        ("size", whole),
        ("input", _contract(twin.contract)),
        (
            "twin",
            f"{run.config.twin}, {sum(p.numel() for p in twin.parameters()):,} weights",
        ),
        (
            "embedding",
            f"{twin.dimension} numbers, {'unit length, ' if twin.normalized else ''}"
            f"{twin.metric.value} distance",
        ),
        (
            "training",
            f"{results.get('steps', '?')} steps in {results.get('seconds', '?')} s, ended by "
            f"{results.get('stopped', '?')}; the best twin is of step {run.step}",
        ),
    ]


def settings(config: TrainConfig) -> list[tuple[str, str, bool]]:
    """Return every setting with its value, and whether it is other than the default."""
    defaults = TrainConfig().to_dict()
    return [(key, _plain(value), value != defaults[key]) for key, value in config.to_dict().items()]


def versions() -> list[tuple[str, str]]:
    """Return what runs here: the packages that shape the figures, Python and the system."""
    found = [("twinserve", __version__), ("Python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return [*found, ("system", f"{platform.system()} {platform.machine()}")]


def _contract(contract: InputContract) -> str:
    if isinstance(contract, ImageInput):
        return (
            f"pictures, {contract.height} × {contract.width} pixels, {contract.color_order}, "
            f"resized by {contract.resize} ({contract.resample})"
        )
    if isinstance(contract, TextInput):
        return f"texts of up to {contract.max_tokens} tokens"
    return f"vectors, {' × '.join(map(str, contract.shape))} numbers of {contract.data_type}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "–"
    return str(value) if value != "" else "–"
