"""`twinserve report`: the figures of one run, and of several folds as one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from twinserve.cli import __main__ as command_line
from twinserve.train.config import TrainConfig
from twinserve.train.held_out import FILE, HeldOut
from twinserve.train.loop import train


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Train two tiny twins on vectors, with other classes held out in each."""
    folder = tmp_path_factory.mktemp("folds")
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 6)
    rows = generator.normal(size=(20, 6))[labels] + 0.6 * generator.normal(size=(120, 6))
    np.savez(folder / "set.npz", vectors=rows.astype(np.float32), labels=labels)
    runs = [folder / "fold0", folder / "fold1"]
    for seed, out in enumerate(runs):
        config = TrainConfig(
            data=str(folder / "set.npz"),
            out=str(out),
            twin="mlp",
            dimension=4,
            max_steps=2,
            evaluate_every=2,
            one_shot_ways=4,
            one_shot_trials=40,
            calibrate_fraction=0.3,
            report_fraction=0.4,
            seed=seed,
        )
        with pytest.MonkeyPatch.context() as patch:
            for plot in ("draw_roc", "draw_distances"):  # which take longer than all else
                patch.setattr(f"twinserve.train.plots.{plot}", lambda *_: None)
            train(config, progress=False)
    return runs


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = command_line.main(["report", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_run_is_shown_with_intervals(
    folds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = report(capsys, folds[0])
    assert (code, err) == (0, "")
    verified = HeldOut.load(folds[0]).verification
    assert verified is not None
    eer = verified.equal_error_rate
    assert eer.low is not None
    assert eer.high is not None
    line = next(line for line in out.splitlines() if line.startswith("EER"))
    assert f"{100 * eer.value:.2f} %" in line
    assert f"{100 * eer.low:.2f} to {100 * eer.high:.2f} %" in line
    assert f"{folds[0]}/report.html" in out


def test_several_runs_are_joined(
    folds: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = report(capsys, *folds, "--out", tmp_path / "folds.json")
    assert code == 0
    assert out.splitlines()[2].split() == ["FIGURE", "MEAN", "SD", "POOLED", "fold0", "fold1"]
    code, printed, _ = report(capsys, *folds, "--json")
    summary = json.loads(printed)
    assert summary == json.loads((tmp_path / "folds.json").read_text())
    assert [one["run"] for one in summary["runs"]] == [str(folder) for folder in folds]
    eer = next(row for row in summary["figures"] if row["figure"] == "EER")
    assert eer["mean"] == pytest.approx(np.mean(eer["values"]))
    assert eer["standard_deviation"] == pytest.approx(np.std(eer["values"], ddof=1))


def test_runs_of_different_trainings_have_no_mean(
    folds: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "wider"
    shutil.copytree(folds[1], other)
    settings = (other / "config.toml").read_text()
    (other / "config.toml").write_text(settings.replace("dimension = 4", "dimension = 8"))
    code, out, _ = report(capsys, folds[0], other)
    assert code == 0
    first, _, head, *_ = out.splitlines()
    assert first.endswith("different trainings, which no mean joins: they differ in dimension")
    assert head.split() == ["FIGURE", "fold0", "wider"]
    summary = json.loads(report(capsys, folds[0], other, "--json")[1])
    assert summary["settings_that_differ"] == ["dimension"]
    eer = next(row for row in summary["figures"] if row["figure"] == "EER")
    assert (eer["mean"], eer["pooled"], len(eer["values"])) == (None, None, 2)
    (other / "config.toml").write_text(settings.replace("set.npz", "second.npz"))
    assert "MEAN" in report(capsys, folds[0], other)[1], "folds may be files"


@pytest.mark.parametrize("again", [True, False])
def test_a_run_without_figures_is_measured_from_its_checkpoint_and_data(
    folds: list[Path], capsys: pytest.CaptureFixture[str], again: bool
) -> None:
    before = HeldOut.load(folds[1])
    (folds[1] / "report.html").unlink()
    if not again:
        (folds[1] / FILE).unlink()
    code, _, err = report(capsys, folds[1], *(["--again"] if again else []))
    assert code == 0
    assert f"measuring {folds[1]}" in err
    assert HeldOut.load(folds[1]) == before
    assert (folds[1] / "report.html").exists()


def test_what_is_no_finished_run_is_refused(
    folds: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = report(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert "holds no checkpoint.pt" in err
    assert report(capsys, folds[0], folds[0])[0] == 2
    from twinserve.train import checkpoint

    run = checkpoint.load(folds[0])
    checkpoint.save(
        tmp_path,
        **{
            field.name: getattr(run, field.name)
            for field in dataclasses.fields(run)
            if field.name not in ("folder", "results")
        },
        results={},
    )
    assert "has not ended" in report(capsys, tmp_path)[2]
