"""Short real trainings: they learn, repeat themselves, and leave a run folder that opens."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train import drawings
from twinserve.errors import ConfigError, DataError, NotFinite
from twinserve.train import checkpoint, health
from twinserve.train.build import build
from twinserve.train.checkpoint import Run
from twinserve.train.config import TrainConfig
from twinserve.train.evaluate import embed
from twinserve.train.loop import train
from twinserve.train.objective import Figures
from twinserve.train.record import Keeper
from twinserve.train.standing import evaluate_part

QUICK = TrainConfig(
    train_groups=("alphabet0", "alphabet3"),
    calibrate_groups=("alphabet1",),
    report_groups=("alphabet2",),
    ink_inverted=True,
    width=16,
    dimension=16,
    classes_per_batch=12,
    rotations=True,
    rotate_degrees=10.0,
    shift=0.05,
    max_steps=60,
    evaluate_every=20,
    one_shot_ways=8,
    one_shot_trials=400,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = drawings.files(groups=4, classes=12, items=6)
    return drawings.write_zip(tmp_path_factory.mktemp("data") / "set.zip", content)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run")
    return train(dataclasses.replace(QUICK, data=str(data), out=str(out)), progress=False)


def quick(data: Path, out: Path, **changes: object) -> TrainConfig:
    settings = {"data": str(data), "out": str(out), "max_steps": 6, "evaluate_every": 2, **changes}
    return dataclasses.replace(QUICK, **settings)  # type: ignore[arg-type]


def signal_at_step(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send this process a signal while a step is taken."""
    note = Keeper.note

    def noted(self: Keeper, figures: Figures, items: int) -> None:
        note(self, figures, items)
        if self.steps == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Keeper, "note", noted)


def test_training_improves_on_unseen_classes_over_the_start(run: Run) -> None:
    report = run.part("report")
    torch.manual_seed(run.config.seed)
    start = evaluate_part(build(run.config, run.twin.contract), report, run.config)
    trained = evaluate_part(run.twin, report, run.config)
    assert trained.one_shot.accuracy > start.one_shot.accuracy + 0.1
    assert trained.equal_error_rate < start.equal_error_rate - 0.05
    assert run.results["report"] == trained.to_dict()


def test_the_run_folder_holds_all_that_it_should(run: Run) -> None:
    report = json.loads((run.folder / "report.json").read_text())
    assert report["stopped"] == "max_steps"
    assert report["steps"] == 60
    assert report["best_step"] == run.step
    assert 0.0 < report["pixels_one_shot"] < 1.0
    splits = json.loads((run.folder / "splits.json").read_text())
    assert splits["report"] == list(run.splits.report)
    with open(run.folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["20", "40", "60"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[-1]["genuine"]) < float(rows[-1]["impostor"])
    for picture in ("roc.png", "distances.png"):
        assert (run.folder / picture).read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_gives_back_the_same_twin_and_the_same_images(run: Run) -> None:
    again = checkpoint.load(run.folder)
    assert again.config == run.config
    assert again.splits == run.splits
    assert not again.twin.training
    images = again.part("calibrate")
    assert images.class_names == run.splits.calibrate
    assert np.array_equal(embed(again.twin, images.rows), embed(run.twin, images.rows))
    with pytest.raises(DataError, match="no part 'test'"):
        again.part("test")


def test_images_that_changed_since_the_training_are_refused(data: Path, tmp_path: Path) -> None:
    content = drawings.files(groups=4, classes=4, items=3)
    folder = drawings.write_folder(tmp_path / "data", content)
    run = train(quick(folder, tmp_path / "run", max_steps=1, one_shot_ways=3), progress=False)
    (folder / "alphabet0" / "letter00" / "00.png").write_bytes(drawings.draw(999, 0))
    with pytest.raises(DataError, match="has changed since"):
        run.part("train")


def test_equal_seeds_give_equal_twins_and_other_seeds_others(data: Path, tmp_path: Path) -> None:
    weights = []
    for index, seed in enumerate((4, 4, 5)):
        run = train(quick(data, tmp_path / str(index), seed=seed), progress=False)
        weights.append(torch.cat([p.flatten() for p in run.twin.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("loss", "mining", "metric"),
    [
        ("contrastive", "random", "euclidean"),
        ("triplet", "random", "cosine"),
        ("triplet", "batch_hard", "euclidean"),
        ("triplet", "semi_hard,batch_all", "cosine"),
        ("concatenation", "random", "cosine"),
    ],
)
def test_every_loss_lowers_itself(
    data: Path, tmp_path: Path, loss: str, mining: str, metric: str
) -> None:
    config = quick(
        data, tmp_path, loss=loss, mining=mining, metric=metric, max_steps=40, evaluate_every=10
    )
    train(config, progress=False)
    with open(tmp_path / "log.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]


def test_a_collapse_is_said_once_and_the_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health, "WINDOW", 1)
    monkeypatch.setattr(health, "collapse", lambda recent, config: "the embeddings collapse")
    run = train(quick(data, tmp_path, max_steps=2, evaluate_every=1), progress=False)
    assert [record.message for record in caplog.records] == ["the embeddings collapse"]
    assert run.results["stopped"] == "max_steps"


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFinite, match=r"at step \d.*failed_batch\.json"):
        train(
            quick(data, tmp_path, learning_rate=1e30, max_steps=20, normalized=False),
            progress=False,
        )
    failed = json.loads((tmp_path / "failed_batch.json").read_text())
    assert len(failed["items"]) == 48


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_signal_leaves_the_best_twin_so_far(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, end: str
) -> None:
    signal_at_step(monkeypatch, 5, number)
    run = train(quick(data, tmp_path), progress=False)
    assert run.results["stopped"] == end
    assert run.results["steps"] == 5
    assert run.step in (2, 4)
    assert checkpoint.load(tmp_path).results == run.results
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_time_and_patience_stop_a_run(data: Path, tmp_path: Path) -> None:
    hurried = train(quick(data, tmp_path / "a", max_seconds=1e-6), progress=False)
    assert (hurried.results["stopped"], hurried.results["steps"]) == ("max_seconds", 1)
    # With a learning rate of next to nothing no evaluation beats the first for long.
    patient = train(
        quick(
            data,
            tmp_path / "b",
            learning_rate=1e-30,
            max_steps=60,
            evaluate_every=1,
            patience=3,
        ),
        progress=False,
    )
    assert patient.results["stopped"] == "patience"
    assert patient.results["steps"] == patient.step + 3


def test_a_run_without_data_or_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data is not set"):
        train(TrainConfig(out=str(tmp_path)), progress=False)
    with pytest.raises(ConfigError, match="out is not set"):
        train(TrainConfig(data=str(tmp_path)), progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be a folder"):
        train(TrainConfig(data=str(tmp_path), out=str(tmp_path / "file")), progress=False)


def test_what_is_no_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no checkpoint\.pt"):
        checkpoint.load(tmp_path)
    whole = (run.folder / checkpoint.FILE).read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        (tmp_path / checkpoint.FILE).write_bytes(damaged)
        with pytest.raises(DataError, match="damaged or no checkpoint"):
            checkpoint.load(tmp_path)
    torch.save({"format": 99}, tmp_path / checkpoint.FILE)
    with pytest.raises(DataError, match="format 99"):
        checkpoint.load(tmp_path)
