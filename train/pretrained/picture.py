"""A vision encoder's folder as a twin in torch: config.json, preprocessor_config.json, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from twinserve.errors import ConfigError
from twinserve.train import encoders
from twinserve.train.pretrained import pictures
from twinserve.train.pretrained.folders import (
    check_size,
    digests,
    metric_of,
    read_json,
    truncations_of,
    unit_length_of,
    weight_files,
)
from twinserve.train.pretrained.settings import Answers, Settings
from twinserve.train.twins import ImageTwin


def is_vision(folder: Path) -> bool:
    """Whether a folder says how its pictures are prepared."""
    return (folder / pictures.FILE).is_file()


def read_twin(
    folder: Path, settings: Settings, answers: Answers
) -> tuple[ImageTwin, dict[str, Any]]:
    """Read a vision encoder as a twin in torch, and say what it was made of.

    Raises:
        ConfigError: a preprocessing that twinserve cannot repeat, or an unknown pooling.
        DataError: no encoder that transformers can load.
        ManifestError: above 2 GB.
    """
    weights = weight_files(folder)
    check_size(weights)
    prepared = pictures.stated(read_json(folder / pictures.FILE), settings, answers)
    guess = encoders.image_pooling_guess(folder)
    if guess is None and settings.pooling is None:
        raise ConfigError(
            "the encoder's architecture is not among the known ones; say which part of its output "
            f"is the embedding: --pooling {' | '.join(encoders.IMAGE_POOLINGS)}"
        )
    named, kind = ("", "") if guess is None else guess
    pooling = answers.guess("pooling", settings.pooling, (named,), f"usual for {kind}", "--pooling")
    if len(pooling) != 1:
        raise ConfigError(f"--pooling is {'+'.join(pooling)}; a picture's embedding has one")
    encoder = encoders.load_image(folder, pooling[0], prepared.crop)
    normalized = unit_length_of(settings, answers)
    metric = metric_of(None, settings, answers, "", normalized=normalized)
    contract = prepared.contract
    with torch.inference_mode():
        shape = (1, contract.channels, contract.height, contract.width)
        dimension = encoder(torch.zeros(shape)).shape[1]
    truncations = truncations_of(
        read_json(folder / "config.json").get("matryoshka_dims"),
        dimension,
        settings,
        answers,
        "config.json",
    )
    # The twin divides pixels by 255 itself.
    factor = 255.0 * prepared.scale
    twin = ImageTwin(
        encoder,
        contract=contract,
        dimension=dimension,
        metric=metric,
        normalized=normalized,
        truncations=truncations,
        mean=[value / factor for value in prepared.mean],
        std=[value / factor for value in prepared.std],
    ).eval()
    read = [folder / "config.json", folder / pictures.FILE, *weights]
    origin = {
        "kind": "transformers",
        "architecture": type(encoder.model).__name__,
        "made_with": {
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
        "pooling": list(pooling),
        "pixels": pictures.told(prepared),
        "files": digests(folder, read),
    }
    return twin, origin
