"""A step in parts, or in half precision, is the step that a whole batch makes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from twinserve.errors import ConfigError
from twinserve.manifest import ImageInput
from twinserve.train.augment import Augmented
from twinserve.train.config import TrainConfig
from twinserve.train.conv4 import conv4
from twinserve.train.data import Batch
from twinserve.train.hardware import Hardware, hardware_of
from twinserve.train.matryoshka import objective_of
from twinserve.train.processes import Processes
from twinserve.train.step import Stepper
from twinserve.train.twins import ImageTwin

CPU = Hardware(torch.device("cpu"), None)
CONTRACT = ImageInput(height=16, width=16, channels=1, color_order="L", resize="stretch")
ROWS = 14


def stepper_of(
    config: TrainConfig,
    *,
    hardware: Hardware = CPU,
    processes: Processes | None = None,
    batch_norm: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[ImageTwin, Any, Stepper]:
    """A small twin on made pictures, with the objective and stepper of a config."""
    torch.manual_seed(7)
    twin = conv4(CONTRACT, dimension=6, width=4)
    if not batch_norm:
        layers = [one for one in twin.body if not isinstance(one, torch.nn.BatchNorm2d)]  # type: ignore[attr-defined]
        twin.body = torch.nn.Sequential(*layers)
    objective = objective_of(config, classes=5)
    twin.to(dtype)
    objective.to(dtype)
    pictures = np.random.default_rng(1).integers(0, 256, (20, 16, 16, 1), dtype=np.uint8)
    augmented = Augmented(pictures, CONTRACT, config)
    return (
        twin,
        objective,
        Stepper(twin, objective, augmented, config, hardware, processes or Processes()),
    )


def batch() -> Batch:
    generator = np.random.default_rng(2)
    return Batch(
        items=generator.integers(0, 20, ROWS),
        turns=np.zeros(ROWS, np.int64),
        labels=np.arange(ROWS) % 5,
    )


def gradients(*modules: torch.nn.Module) -> list[torch.Tensor]:
    return [
        torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for module in modules
        for weight in module.parameters()
    ]


CONFIG = TrainConfig(twin="conv4", width=4, dimension=6, image_size=16, max_steps=10, shift=0.1)
LOSSES: list[dict[str, Any]] = [
    {"loss": "supervised_contrastive"},
    {"loss": "triplet", "mining": "batch_hard"},
    {"loss": "concatenation"},
    {"loss": "cosine_mse", "matryoshka": (3,)},
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mini_batch", [1, 4, 14, 50])
def test_parts_give_the_gradients_of_the_whole(loss: dict[str, Any], mini_batch: int) -> None:
    whole = dataclasses.replace(CONFIG, **loss)
    twin, objective, stepper = stepper_of(whole)
    expected = stepper.measure(batch(), 3)
    wanted = gradients(twin, objective)
    assert any(gradient.abs().max() > 1e-6 for gradient in wanted)
    parts = dataclasses.replace(whole, mini_batch=mini_batch)
    twin, objective, stepper = stepper_of(parts)
    figures = stepper.measure(batch(), 3)
    assert dataclasses.astuple(figures) == pytest.approx(dataclasses.astuple(expected), rel=1e-9)
    for gradient, right in zip(gradients(twin, objective), wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-9, atol=1e-12)


def test_a_batch_too_small_for_all_processes_and_parts_is_refused() -> None:
    _, _, stepper = stepper_of(dataclasses.replace(CONFIG, mini_batch=1))
    stepper._processes.count = 3
    small = dataclasses.replace(batch(), items=batch().items[:5], labels=batch().labels[:5])
    with pytest.raises(ConfigError, match="5 rows does not reach 3 processes in 2 parts each"):
        stepper.measure(small, 3)


def test_dropout_is_the_same_when_rows_are_embedded_again() -> None:
    seen: list[torch.Tensor] = []

    class Noted(torch.nn.Dropout):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            seen.append(super().forward(torch.ones_like(rows)))
            return rows * seen[-1]

    twin, _, stepper = stepper_of(dataclasses.replace(CONFIG, mini_batch=7))
    twin.body.append(Noted(0.5))  # type: ignore[operator]
    stepper.measure(batch(), 3)
    first, second, first_again, second_again = seen
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert not torch.equal(first, second)
    stepper.measure(batch(), 4)
    assert not torch.equal(seen[4], first)


def test_running_averages_take_each_row_in_once() -> None:
    twin, _, stepper = stepper_of(dataclasses.replace(CONFIG, mini_batch=7), batch_norm=True)
    once, _, _ = stepper_of(CONFIG, batch_norm=True)
    stepper.measure(batch(), 3)
    inputs = Augmented(
        np.random.default_rng(1).integers(0, 256, (20, 16, 16, 1), dtype=np.uint8),
        CONTRACT,
        CONFIG,
    )(batch(), torch.Generator().manual_seed(3))[0]
    once.train()
    for part in (inputs[:7], inputs[7:]):
        once(part)
    for name, buffer in once.named_buffers():
        if "running" in name:
            torch.testing.assert_close(dict(twin.named_buffers())[name], buffer)
    assert twin.body[1].momentum == 0.1  # type: ignore[index,union-attr]


def test_bfloat16_measures_nearly_what_float32_does_and_learns() -> None:
    config = dataclasses.replace(CONFIG, max_steps=40, learning_rate=1e-2)
    narrow = hardware_of(dataclasses.replace(config, precision="bf16", device="cpu"))
    losses = {}
    for hardware in (CPU, narrow):
        twin, _, stepper = stepper_of(
            config, hardware=hardware, batch_norm=True, dtype=torch.float32
        )
        taken = []
        for step in range(20):
            taken.append(stepper.measure(batch(), step).loss)
            stepper.move()
        losses[str(hardware)] = taken
        assert all(weight.dtype == torch.float32 for weight in twin.parameters())
    assert list(losses) == ["cpu, fp32", "cpu, bf16"]
    wide, half = losses.values()
    assert half[0] != wide[0]
    assert half[0] == pytest.approx(wide[0], rel=0.02)
    assert half[-1] < 0.7 * half[0]


def test_a_device_or_precision_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(hardware_of(TrainConfig())) == "cpu, fp32"
    with pytest.raises(ConfigError, match="torch sees no GPU here; set device=cpu"):
        hardware_of(TrainConfig(device="cuda"))
    with pytest.raises(ConfigError, match="fp16', which is of GPUs"):
        hardware_of(TrainConfig(precision="fp16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert str(hardware_of(TrainConfig(), local_rank=1)) == "cuda:1, fp16"
    assert str(hardware_of(TrainConfig(device="cpu"))) == "cpu, fp32"
