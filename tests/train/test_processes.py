"""Two processes over gloo take the steps of one."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train import drawings
from tests.train.test_step import CONFIG, LOSSES, batch, gradients, stepper_of
from twinserve.errors import ConfigError
from twinserve.train import loop, state
from twinserve.train.config import TrainConfig
from twinserve.train.loop import train
from twinserve.train.processes import Processes, share_batch_norms
from twinserve.train.record import Keeper

COUNT = 2
CASES = [{**loss, "mini_batch": mini_batch} for loss in LOSSES for mini_batch in (0, 3)]


def measured(case: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """The figures, gradients and running averages after one step."""
    batch_norm = not case["mini_batch"]  # parts are normalised by themselves
    config = dataclasses.replace(CONFIG, **case)
    twin, objective, stepper = stepper_of(config, processes=processes, batch_norm=batch_norm)
    share_batch_norms(twin, processes)
    figures = stepper.measure(batch(), 3)
    return {
        "figures": dataclasses.astuple(figures),
        "gradients": gradients(twin, objective),
        "buffers": dict(twin.named_buffers()),
    }


def training(data: str, out: str, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "max_steps": 6,
        "evaluate_every": 2,
        "one_shot_ways": 3,
        "one_shot_trials": 60,
        "dimension": 8,
        "width": 4,
        "image_size": 16,
        "classes_per_batch": 5,
        "items_per_class": 3,
        "calibrate_fraction": 0.3,
        "report_fraction": 0.3,
        "learning_rate": 1e-4,
    }
    return TrainConfig(data=data, out=out, **{**settings, **changes})


def work(rank: int, port: int, folder: str) -> None:
    """One of the processes; the one that leads leaves what it found in the folder."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(COUNT),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    loop.write_report = lambda *_: None  # type: ignore[assignment]
    with Processes() as processes:
        processes.join(torch.device("cpu"))
        found = [measured(case, processes) for case in CASES]
        if processes.leads:
            torch.save(found, f"{folder}/found.pt")
        asked = training(f"{folder}/set.zip", f"{folder}/two")
        with stopped_at(3 if rank == 1 else 0):  # one alone hears the signal
            train(asked, progress=False)
        assert (Path(folder) / "two" / state.FILE).exists()
        processes.agree((True,))
        train(asked, progress=False, resume=True)


@contextlib.contextmanager
def stopped_at(step: int) -> Any:
    """Interrupt this process at a step; at none where it is 0."""
    note = Keeper.note

    def noted(self: Keeper, *figures: Any) -> None:
        note(self, *figures)
        if self.steps == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Keeper, "note", noted)
        yield


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    drawings.write_zip(folder / "set.zip", drawings.files(groups=3, classes=5, items=4))
    torch.multiprocessing.spawn(work, (free_port(), str(folder)), nprocs=COUNT)  # type: ignore[no-untyped-call]
    return folder


def test_gradients_of_two_processes_are_those_of_one(folder: Path) -> None:
    found = torch.load(folder / "found.pt", weights_only=True)
    for case, two in zip(CASES, found, strict=True):
        one = measured(case, Processes())
        assert two["figures"] == pytest.approx(one["figures"], rel=1e-9), case
        for gradient, right in zip(two["gradients"], one["gradients"], strict=True):
            torch.testing.assert_close(gradient, right, rtol=1e-7, atol=1e-12)
        for name, buffer in one["buffers"].items():
            torch.testing.assert_close(two["buffers"][name], buffer)


def test_a_training_by_two_that_was_stopped_and_resumed_has_the_losses_of_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_: None)
    train(training(str(folder / "set.zip"), str(folder / "one")), progress=False)
    logs = []
    for name in ("one", "two"):
        with open(folder / name / "log.csv", newline="", encoding="utf-8") as file:
            logs.append(list(csv.DictReader(file)))
    one, two = logs
    assert [row["step"] for row in two] == [row["step"] for row in one] == ["2", "4", "6"]
    for row, right in zip(two, one, strict=True):
        assert float(row["loss"]) == pytest.approx(float(right["loss"]), abs=2e-4)


def test_processes_that_cannot_meet_are_told_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="start the training by torchrun"):
        Processes().join(torch.device("cpu"))
