"""conv5 has the shapes that its page tells, and survives its export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.train import drawings
from twinserve.export.to_onnx import to_onnx
from twinserve.manifest import ImageInput
from twinserve.train import checkpoint, loop
from twinserve.train.config import load_config
from twinserve.train.conv5 import conv5
from twinserve.train.loop import train


def contract(side: int, channels: int = 1) -> ImageInput:
    return ImageInput(side, side, channels, "L" if channels == 1 else "RGB", resize="stretch")


def test_of_56_pixels_there_are_14_then_7_then_3_places_along_a_side() -> None:
    twin = conv5(contract(56))
    seen: list[tuple[int, ...]] = []
    for module in twin.body:  # type: ignore[union-attr]
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    with torch.inference_mode():
        embeddings = twin.eval()(torch.randint(0, 256, (2, 56, 56, 1), dtype=torch.uint8))
    assert seen == [(64, 14, 14), (96, 14, 14), (96, 7, 7), (128, 7, 7), (128, 3, 3)]
    assert embeddings.shape == (2, 128)


@pytest.mark.parametrize("side", [16, 31, 32, 45, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_takes_any_picture_that_a_config_may_ask_for(side: int, channels: int) -> None:
    twin = conv5(contract(side, channels), width=4, dimension=6).eval()
    pixels = torch.randint(0, 256, (3, side, side, channels), dtype=torch.uint8)
    with torch.inference_mode():
        assert twin(pixels).shape == (3, 6)


@pytest.mark.long  # the exporter takes seconds to load
def test_its_graph_repeats_it() -> None:
    torch.manual_seed(0)
    twin = conv5(contract(56), width=8, dimension=16, ink_inverted=True).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 56, 56, 1), dtype=np.uint8)
    session = onnxruntime.InferenceSession(to_onnx(twin), providers=["CPUExecutionProvider"])
    (served,) = session.run(None, {session.get_inputs()[0].name: pixels})
    with torch.inference_mode():
        np.testing.assert_allclose(served, twin(torch.from_numpy(pixels)).numpy(), atol=2e-6)


def test_it_trains_in_bfloat16_and_is_kept_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_: None)
    drawings.write_zip(tmp_path / "set.zip", drawings.files(groups=3, classes=5, items=4))
    settings = [
        *(f"data={tmp_path / 'set.zip'}", f"out={tmp_path / 'run'}"),
        *("twin=conv5", "precision=bf16", "weight_average=0.5", "image_size=32", "width=8"),
        *("max_steps=3", "evaluate_every=3", "one_shot_ways=3", "one_shot_trials=60"),
        *("classes_per_batch=4", "calibrate_fraction=0.3", "report_fraction=0.3"),
    ]
    train(load_config(None, settings), progress=False)
    run = checkpoint.load(tmp_path / "run")
    assert run.config.twin == "conv5"
    floats = {t.dtype for t in run.twin.state_dict().values() if t.is_floating_point()}
    assert floats == {torch.float32}
