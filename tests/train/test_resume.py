"""A training that was stopped goes on to the losses and weights that it would have had."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train import drawings, links, questions
from twinserve.errors import ConfigError, DataError
from twinserve.train import checkpoint, loop, state
from twinserve.train.config import TrainConfig
from twinserve.train.loop import train
from twinserve.train.record import Keeper

STEPS = 8
EVERY = 3


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_: None)  # which takes longer than all else


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    drawings.write_zip(folder / "set.zip", drawings.files(groups=3, classes=5, items=4))
    questions.write_csv(folder / "texts.csv", [*questions.rows()], ("question", "topic"))
    links.write(folder)
    return folder


COMMON: dict[str, Any] = {
    "max_steps": STEPS,
    "evaluate_every": EVERY,
    "one_shot_ways": 3,
    "one_shot_trials": 60,
    "dimension": 8,
    "classes_per_batch": 4,
    "calibrate_fraction": 0.3,
    "report_fraction": 0.3,
}
CASES: dict[str, dict[str, Any]] = {
    # Batch norm's averages, augmentation and a miner that draws.
    "pictures": {
        "data": "set.zip",
        "width": 8,
        "loss": "triplet",
        "mining": "random,batch_hard",
        "rotations": True,
        "shift": 0.1,
        "weight_average": 0.9,
    },
    # Tokens left out at random, and a head with weights of its own.
    "texts": {"data": "texts.csv", "twin": "words", "loss": "concatenation"},
    "pairs": {
        "data": "pairs.csv",
        "items": "v.npy",
        "twin": "mlp",
        "loss": "contrastive",
        "mini_batch": 50,
    },
}


def config(folder: Path, out: Path, **changes: Any) -> TrainConfig:
    settings = {**COMMON, **changes}
    for key in ("data", "items"):
        if key in settings:
            settings[key] = str(folder / settings[key])
    return TrainConfig(out=str(out), **settings)


def log(folder: Path) -> list[dict[str, str]]:
    """The rows of log.csv but for the speed."""
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if key != "items_per_second"} for row in rows]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how: Exception | None) -> None:
    """Interrupt a training while it takes a step, as Ctrl-C does, or break it off."""
    note = Keeper.note

    def noted(self: Keeper, *figures: Any) -> None:
        note(self, *figures)
        if self.steps == step:
            if how is not None:
                raise how
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Keeper, "note", noted)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", ["interrupt", "crash"])
def test_a_resumed_training_repeats_the_one_that_was_not_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, how: str
) -> None:
    settings = {**CASES[case], "save_seconds": 0.0}
    whole = train(config(data, tmp_path / "whole", **settings), progress=False)
    with monkeypatch.context() as patched:
        # Between two evaluations: the window's figures are halfway, too.
        if how == "interrupt":
            stop_at(patched, 4, None)
            train(config(data, tmp_path / "parts", **settings), progress=False)
        else:
            stop_at(patched, 5, OSError("the machine died"))
            with pytest.raises(OSError, match="died"):
                train(config(data, tmp_path / "parts", **settings), progress=False)
    asked = state.config_to_resume(tmp_path / "parts")
    resumed = train(asked, progress=False, resume=True)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert [row["step"] for row in log(tmp_path / "whole")] == ["3", "6", "8"]
    assert resumed.step == whole.step
    assert resumed.results == whole.results
    for name, weight in whole.twin.state_dict().items():
        assert torch.equal(weight, resumed.twin.state_dict()[name]), name
    assert not (tmp_path / "parts" / state.FILE).exists()


def test_a_training_that_ran_out_of_time_goes_on(data: Path, tmp_path: Path) -> None:
    settings = CASES["texts"]
    whole = train(config(data, tmp_path / "whole", **settings), progress=False)
    hurried = config(data, tmp_path / "parts", max_seconds=1e-6, **settings)
    train(hurried, progress=False)  # one step, and an evaluation that is not due
    assert len(log(tmp_path / "parts")) == 1
    longer = state.config_to_resume(tmp_path / "parts", ["max_seconds=60"])
    resumed = train(longer, progress=False, resume=True)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert resumed.step == whole.step


def test_what_cannot_be_resumed_is_refused(data: Path, tmp_path: Path) -> None:
    settings = {**CASES["texts"], "max_seconds": 1e-6}
    asked = config(data, tmp_path, **settings)
    with pytest.raises(ConfigError, match=r"holds no state\.pt to resume from"):
        train(asked, progress=False, resume=True)
    train(asked, progress=False)
    other = dataclasses.replace(asked, learning_rate=0.5, seed=3)
    with pytest.raises(
        ConfigError, match=r"learning_rate is 0.5, and .* begun with 0.001 \(seed differ too\)"
    ):
        train(other, progress=False, resume=True)
    lines = questions.rows()[:-1]
    fewer = questions.write_csv(tmp_path / "fewer.csv", [*lines], ("question", "topic"))
    with pytest.raises(DataError, match="has changed since the training"):
        train(dataclasses.replace(asked, data=str(fewer)), progress=False, resume=True)
    whole = (tmp_path / state.FILE).read_bytes()
    (tmp_path / state.FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged or no state of a training; train again"):
        train(asked, progress=False, resume=True)
    torch.save({"format": 99}, tmp_path / state.FILE)
    with pytest.raises(DataError, match="format 99"):
        train(asked, progress=False, resume=True)
    state.remove(tmp_path)
    with pytest.raises(ConfigError, match="came to its end, so there is nothing to resume"):
        train(asked, progress=False, resume=True)


def test_the_config_lies_beside_the_run_and_can_be_taken_again(data: Path, tmp_path: Path) -> None:
    from twinserve.train.config import load_config

    asked = config(data, tmp_path, **CASES["pictures"], matryoshka=(4, 2))
    train(asked, progress=False)
    assert load_config(tmp_path / "config.toml") == checkpoint.load(tmp_path).config
    odd = TrainConfig(
        out='a "quoted" \\ name\n',
        loss="metric_learning:TripletMarginLoss",
        loss_parameters={"margin": 0.1, "distance": {"type": "LpDistance", "p": 2}},
        false_accept_rates=(0.01, 0.1),
        train_groups=("Ä", "b"),
        calibrate_groups=("c",),
        report_groups=("d",),
    )
    (tmp_path / "odd.toml").write_text(odd.to_toml(), encoding="utf-8")
    assert load_config(tmp_path / "odd.toml") == odd


def test_figures_for_tensorboard(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = {**CASES["texts"], "tensorboard": True, "save_seconds": 0.0}
    with monkeypatch.context() as patched:
        stop_at(patched, 5, None)
        train(config(data, tmp_path, **settings), progress=False)
    train(state.config_to_resume(tmp_path), progress=False, resume=True)
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    rows = log(tmp_path)
    for name, column in (("train/loss", "loss"), ("calibrate/one_shot", "one_shot")):
        scalars = read.Scalars(name)
        assert [scalar.step for scalar in scalars] == [int(row["step"]) for row in rows]
        assert np.allclose(
            [scalar.value for scalar in scalars], [float(row[column]) for row in rows], atol=1e-4
        )
    assert read.Scalars("train/learning_rate")[-1].value == pytest.approx(0.0, abs=1e-9)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'twinserve\[tensorboard\]'"):
        train(config(data, tmp_path, **settings), progress=False)
