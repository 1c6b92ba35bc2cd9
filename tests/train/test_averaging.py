"""The average of the weights is what its formula says, and what a run keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train import drawings
from twinserve.errors import ConfigError
from twinserve.manifest import ImageInput
from twinserve.train import checkpoint, loop
from twinserve.train.averaging import WeightAverage
from twinserve.train.config import TrainConfig, load_config
from twinserve.train.conv4 import conv4
from twinserve.train.loop import train
from twinserve.train.twins import ImageTwin

CONTRACT = ImageInput(height=16, width=16, channels=1, color_order="L", resize="stretch")
NAME = "body.0.weight"


def small() -> ImageTwin:
    torch.manual_seed(0)
    return conv4(CONTRACT, dimension=4, width=4)


def fill(twin: ImageTwin, value: float) -> None:
    """Put every weight, and what batch norms have seen, at one value."""
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            if name not in ("mean", "std"):
                tensor.fill_(value)


def test_the_decay_rises_to_its_full_value_as_worked_out_by_hand() -> None:
    twin = small()
    fill(twin, 1.0)
    average = WeightAverage(twin, 0.15)
    fill(twin, 2.0)
    average.update()  # decay 1/10: 0.1 * 1 + 0.9 * 2
    weights = average.twin.state_dict()
    assert weights["body.0.weight"].unique().tolist() == pytest.approx([1.9])
    fill(twin, 4.0)
    average.update()  # 2/11 is above 0.15: 0.15 * 1.9 + 0.85 * 4
    assert weights["body.0.weight"].unique().tolist() == pytest.approx([3.685])
    assert weights["body.17.bias"].tolist() == pytest.approx([3.685] * 4)


def test_batch_norms_statistics_are_averaged_and_their_counts_taken_over() -> None:
    twin = small()
    fill(twin, 1.0)
    average = WeightAverage(twin, 0.999)
    fill(twin, 3.0)
    average.update()
    seen = average.twin.state_dict()
    assert seen["body.1.running_mean"].tolist() == pytest.approx([2.8] * 4)
    assert seen["body.1.running_var"].tolist() == pytest.approx([2.8] * 4)
    assert seen["body.1.num_batches_tracked"] == 3


def test_the_trained_twin_is_left_as_it_is_and_its_average_learns_nothing_by_itself() -> None:
    twin = small()
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    average = WeightAverage(twin, 0.9)
    average.update()
    assert all(torch.equal(before[name], tensor) for name, tensor in twin.state_dict().items())
    assert not any(weight.requires_grad for weight in average.twin.parameters())
    assert all(weight.requires_grad for weight in twin.parameters())


def test_without_a_decay_the_trained_twin_is_the_one_that_is_kept() -> None:
    twin = small()
    average = WeightAverage(twin, 0.0)
    average.update()
    assert average.twin is twin
    assert average.state_dict() == {}


def test_frozen_weights_are_neither_averaged_nor_copied() -> None:
    twin = small()
    twin.body[0].weight.requires_grad_(False)  # type: ignore[index]
    average = WeightAverage(twin, 0.5)
    frozen = average.twin.state_dict()["body.0.weight"].clone()
    fill(twin, 9.0)
    average.update()
    assert torch.equal(average.twin.state_dict()["body.0.weight"], frozen)


def test_its_state_carries_the_average_and_how_far_the_decay_has_risen() -> None:
    twin = small()
    average = WeightAverage(twin, 0.9)
    for value in (1.0, 2.0, 3.0):
        fill(twin, value)
        average.update()
    other = WeightAverage(small(), 0.9)
    other.load_state_dict(average.state_dict())
    assert other.steps == 3
    pairs = zip(other.twin.state_dict().values(), average.twin.state_dict().values(), strict=True)
    assert all(torch.equal(one, another) for one, another in pairs)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_would_average_nothing_or_everything_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"weight_average is .*0 or more, below 1"):
        TrainConfig(weight_average=decay)


def test_a_run_keeps_the_average_of_the_weights_that_it_would_keep_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_: None)
    drawings.write_zip(tmp_path / "set.zip", drawings.files(groups=3, classes=5, items=4))
    trained: list[Tensor] = []
    averaged: list[Tensor] = []
    update = WeightAverage.update

    def noted(self: WeightAverage) -> None:
        update(self)
        trained.append(self._trained.state_dict()[NAME].clone())
        averaged.append(self.twin.state_dict()[NAME].clone())

    monkeypatch.setattr(WeightAverage, "update", noted)
    settings = [
        f"data={tmp_path / 'set.zip'}",
        *("max_steps=3", "evaluate_every=3", "one_shot_ways=3", "one_shot_trials=60"),
        *("dimension=8", "width=8", "classes_per_batch=4"),
        *("calibrate_fraction=0.3", "report_fraction=0.3"),
    ]
    train(load_config(None, [*settings, f"out={tmp_path / 'raw'}"]), progress=False)
    raw, trained[:], averaged[:] = list(trained), [], []
    settings += [f"out={tmp_path / 'run'}", "weight_average=0.1"]
    train(load_config(None, settings), progress=False)
    assert all(torch.equal(one, other) for one, other in zip(raw, trained, strict=True))
    assert torch.allclose(averaged[2], 0.1 * averaged[1] + 0.9 * trained[2], atol=1e-7)
    kept = checkpoint.load(tmp_path / "run").twin.state_dict()[NAME]
    assert torch.equal(kept, averaged[2])
    assert not torch.equal(kept, trained[2])
