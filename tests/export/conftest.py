"""A small run, trained for real in a few seconds, and a twin that was never trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.export.text_twins import make_text_twin
from twinserve.distance import Metric
from twinserve.export.to_onnx import to_onnx
from twinserve.manifest import ImageInput
from twinserve.preprocess import DECODER
from twinserve.train.config import TrainConfig
from twinserve.train.conv4 import conv4
from twinserve.train.loop import train
from twinserve.train.twins import Twin

CONTRACT = ImageInput(16, 16, 1, "L", decoder=DECODER)
CLASSES, ITEMS = 30, 10


def draw_classes(folder: Path, seed: int = 0) -> None:
    """Write PNGs, one folder per class: a blurred pattern per class, noise per item."""
    generator = np.random.default_rng(seed)
    for label in range(CLASSES):
        pattern = generator.normal(size=(4, 4)).repeat(4, axis=0).repeat(4, axis=1)
        home = folder / f"class{label:02}"
        home.mkdir(parents=True)
        for item in range(ITEMS):
            pixels = 128 + 50 * pattern + 35 * generator.normal(size=(16, 16))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(home / f"{item:02}.png")


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training."""
    base = tmp_path_factory.mktemp("export")
    draw_classes(base / "data")
    train(
        TrainConfig(
            data=str(base / "data"),
            out=str(base / "run"),
            calibrate_fraction=0.34,
            report_fraction=0.34,
            image_size=16,
            width=8,
            dimension=12,
            classes_per_batch=8,
            items_per_class=4,
            max_steps=16,
            evaluate_every=8,
            one_shot_ways=5,
            one_shot_trials=100,
        ),
        progress=False,
    )
    return base / "run"


@pytest.fixture(scope="session")
def model() -> bytes:
    """The graph of `make_twin()`."""
    return to_onnx(make_twin())


@pytest.fixture(scope="session")
def text_model() -> bytes:
    """The graph of `make_text_twin()`."""
    return to_onnx(make_text_twin())


@pytest.fixture
def twin() -> Twin:
    """An untrained conv4 of 12 dimensions."""
    return make_twin()


def make_twin(seed: int = 3, *, normalized: bool = True, metric: Metric = Metric.COSINE) -> Twin:
    torch.manual_seed(seed)
    built = conv4(
        CONTRACT, dimension=12, width=8, normalized=normalized, metric=metric, ink_inverted=True
    )
    return built.eval()


def random_inputs(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 1), dtype=np.uint8)
