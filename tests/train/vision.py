"""Tiny vision encoders of random weights, in folders as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from tests.export.imports.conftest import write_json

KINDS = ("vit", "dinov2", "resnet")
WIDTHS = {"vit": 16, "dinov2": 16, "resnet": 8}
_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_STRETCHED = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
# As DINOv2's and ResNet's own: the shorter side, then the centre.
_CUT = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 20},
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16},
}


def save(folder: Path, kind: str) -> Path:
    """Save one of `KINDS`."""
    torch.manual_seed(6)
    model: PreTrainedModel
    if kind == "vit":
        model = ViTModel(ViTConfig(intermediate_size=24, **_TRANSFORMER))
    elif kind == "dinov2":
        # Its pictures are larger than those that its places were learned for.
        model = Dinov2Model(Dinov2Config(mlp_ratio=2, **{**_TRANSFORMER, "image_size": 24}))
    else:
        model = ResNetModel(
            ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        )
    model.save_pretrained(folder)
    prepared = _STRETCHED if kind == "vit" else _CUT
    means = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    write_json(folder / "preprocessor_config.json", {**prepared, **means, "resample": 3})
    return folder
