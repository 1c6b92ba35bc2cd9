"""ViT, DINOv2 and ResNet of transformers: trained on for two steps, kept, and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train import vision
from twinserve.export.exporter import torch_source
from twinserve.export.parity import check_vectors
from twinserve.export.session import GraphSession
from twinserve.export.to_onnx import to_onnx
from twinserve.train import checkpoint
from twinserve.train.build import build
from twinserve.train.config import TrainConfig
from twinserve.train.data import Splits
from twinserve.train.evaluate import embed, tensors
from twinserve.train.finetuning import depths, encoder_of
from twinserve.train.material import image_contract
from twinserve.train.objective import Objective
from twinserve.train.optimizer import optimizer_of
from twinserve.train.twins import Twin

LABELS = torch.arange(4).repeat_interleave(2)


def pictures(twin: Twin, count: int = 8) -> np.ndarray:
    shape = (count, twin.contract.height, twin.contract.width, 3)  # type: ignore[union-attr]
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def trained(folder: Path, **settings: object) -> tuple[Twin, TrainConfig]:
    """Train on one batch for two steps, as the loop does."""
    config = TrainConfig(twin="image_encoder", weights=str(folder), learning_rate=1e-2, **settings)  # type: ignore[arg-type]
    torch.manual_seed(0)
    twin = build(config, image_contract(config))
    objective = Objective(config)
    optimizer = optimizer_of(twin, objective, config)
    for _ in range(2):
        embeddings = twin.train()(*tensors(pictures(twin), twin.contract))
        loss, _ = objective(embeddings, LABELS, torch.Generator())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return twin.eval(), config


@pytest.mark.parametrize("kind", vision.KINDS)
def test_a_vision_encoder_is_trained_on_in_whole_or_in_part(tmp_path: Path, kind: str) -> None:
    folder = vision.save(tmp_path / "model", kind)
    before = build(
        TrainConfig(twin="image_encoder", weights=str(folder)),
        image_contract(TrainConfig(twin="image_encoder", weights=str(folder))),
    )
    whole, _ = trained(folder, layer_decay=0.9)
    assert whole.dimension == vision.WIDTHS[kind]
    encoder = encoder_of(whole)
    assert encoder is not None
    assert encoder.pooling == ("pooler" if kind == "resnet" else "cls")
    assert encoder.crop == (None if kind == "vit" else (16, 16))
    assert depths(encoder)[1] == 2
    start = dict(before.named_parameters())
    # A mask token stands for patches that are hidden in training from scratch alone.
    still = {
        name
        for name, weight in whole.named_parameters()
        if torch.equal(weight, start[name]) and not name.endswith("mask_token")
    }
    assert not still
    part, _ = trained(folder, freeze="1", dimension=4)
    assert part.dimension == 4
    frozen = {name for name, weight in part.named_parameters() if not weight.requires_grad}
    begun = {name.removeprefix("body."): weight for name, weight in start.items()}
    assert frozen
    for name in frozen:
        weight = part.get_parameter(name)
        assert torch.equal(weight, begun[name.removeprefix("body.0.")])


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("vit", marks=pytest.mark.long),  # the exporter takes seconds for each
        "dinov2",
        pytest.param("resnet", marks=pytest.mark.long),
    ],
)
def test_a_vision_encoder_passes_the_gate_from_its_checkpoint(tmp_path: Path, kind: str) -> None:
    folder = vision.save(tmp_path / "model", kind)
    twin, config = trained(folder, freeze="1", dimension=4)
    checkpoint.save(
        tmp_path, twin=twin, config=config, splits=Splits((), (), ()), results={}, data_digest="",
        step=2,
    )  # fmt: skip
    folder.rename(tmp_path / "elsewhere")
    loaded = checkpoint.load(tmp_path).twin
    rows = pictures(twin, 20)
    np.testing.assert_array_equal(embed(loaded, rows), embed(twin, rows))
    session = GraphSession(to_onnx(loaded), twin.contract)
    check_vectors(torch_source(twin).embed, session, rows, twin.contract)
