"""What training changed: the figures of both twins, and an interval of paired draws."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from tests.export.imports.conftest import save_encoder, save_modules, save_pooling
from tests.export.text_twins import VOCABULARY
from tests.train import questions
from twinserve.cli import __main__ as command_line
from twinserve.distance import Metric
from twinserve.train import checkpoint
from twinserve.train.build import as_it_came
from twinserve.train.change import (
    Change,
    change_text,
    changes_of_classes,
    changes_of_links,
    measure_text,
)
from twinserve.train.checkpoint import Run
from twinserve.train.config import TrainConfig
from twinserve.train.correlation import change_of_spearman, spearman
from twinserve.train.folds import estimates, pool_changes
from twinserve.train.held_out import HeldOut, measure, measure_links
from twinserve.train.intervals import Estimate
from twinserve.train.loop import train
from twinserve.train.outcome import measure_again
from twinserve.train.pairs import PairData, TripletData
from twinserve.train.standing import evaluate_part

LABELS = np.repeat(np.arange(20), 6)


def twins(noise: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of 120 items by two twins, the second with less noise of its own."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(20, 8))[LABELS]
    shared, own = generator.normal(size=(2, 120, 8))
    before = centres + noise * shared + 0.3 * own
    return before.astype(np.float32), (centres + 0.8 * noise * shared).astype(np.float32)


def pairs(targets: np.ndarray) -> PairData:
    """Judge pairs of the 120 items, each in one pair: 30 of one class, then 30 at random."""
    rest = np.random.default_rng(1).permutation(np.arange(60, 120)).reshape(30, 2)
    members = np.concatenate([np.arange(60).reshape(30, 2), rest])
    names = tuple(map(str, range(120)))
    return PairData(np.zeros((120, 8), np.float32), names, members, targets.astype(np.float32))


SCORED = pairs(np.random.default_rng(2).random(60))
LABELLED = pairs(np.repeat([1.0, 0.0], 30))
SAME = pairs(np.ones(60))
TRIPLETS = TripletData(
    LABELLED.rows,
    LABELLED.names,
    np.stack([np.arange(0, 60, 2), np.arange(1, 60, 2), np.arange(60, 90)], axis=1),
)


@pytest.mark.parametrize("metric", list(Metric))
def test_both_figures_are_those_of_a_report(metric: Metric) -> None:
    both = twins()
    groups = LABELS % 2
    asked = {"ways": 5, "trials": 50, "seed": 3}
    changes = changes_of_classes(both, LABELS, groups, metric, **asked)
    assert [one.figure for one in changes] == ["EER", "recall@1", "MAP@R", "5-way 1-shot"]
    before, after = (estimates(measure(one, LABELS, groups, metric, **asked)) for one in both)
    for one in changes:
        assert one.before == before[one.figure].value
        assert one.after == after[one.figure].value
        assert one.difference.value == pytest.approx(one.after - one.before, abs=1e-12)


@pytest.mark.parametrize(
    ("data", "figures"),
    [
        (SCORED, ["Spearman"]),
        (LABELLED, ["EER"]),
        (SAME, ["recall@1 of partners"]),
        (TRIPLETS, ["right order", "EER"]),
    ],
)
def test_of_judged_rows_too(data: PairData | TripletData, figures: list[str]) -> None:
    both = twins()
    changes = changes_of_links(both, data, Metric.COSINE, seed=2)
    assert [one.figure for one in changes] == figures
    before, after = (estimates(measure_links(one, data, Metric.COSINE, seed=2)) for one in both)
    for one in changes:
        assert one.before == before[one.figure].value
        assert one.after == after[one.figure].value
        low, high = one.difference.low, one.difference.high
        assert low is not None
        assert high is not None
        assert low <= one.difference.value <= high


def test_a_twin_beside_itself_has_changed_nothing() -> None:
    one = twins()[0]
    changes = changes_of_classes((one, one), LABELS, None, Metric.COSINE, ways=5, trials=30)
    changes += changes_of_links((one, one), SCORED, Metric.COSINE)
    assert len(changes) == 5
    for change in changes:
        assert change.difference == Estimate(0.0, 0.0, 0.0)
        assert change.gain == 0


def test_the_interval_of_spearman_is_of_pairs_drawn_for_both() -> None:
    generator = np.random.default_rng(4)
    scores = generator.random(80)
    before, after = (-scores + noise * generator.normal(size=80) for noise in (0.4, 0.2))
    found = change_of_spearman(before, after, scores, resamples=50, seed=9)
    draws, wanted = np.random.default_rng(9), []
    for _ in range(50):
        rows = draws.integers(80, size=80)
        wanted.append(spearman(-after[rows], scores[rows]) - spearman(-before[rows], scores[rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(wanted, [0.025, 0.975])))


def test_paired_draws_tell_what_two_intervals_leave_open() -> None:
    both = twins(noise=2.0)
    asked = {"ways": 5, "trials": 400}
    changes = changes_of_classes(both, LABELS, None, Metric.COSINE, **asked)
    before, after = (estimates(measure(one, LABELS, None, Metric.COSINE, **asked)) for one in both)
    eer = changes[0]
    assert eer.gain == 1
    assert eer.difference.value < 0
    low, high = after["EER"].high, before["EER"].low
    assert low is not None
    assert high is not None
    assert low > high, "the two intervals overlap"


def test_less_of_an_error_is_a_gain_and_more_of_all_else() -> None:
    for figure, low, high, gain in (
        ("EER", -0.2, -0.1, 1),
        ("EER", 0.1, 0.2, -1),
        ("Spearman", 0.1, 0.2, 1),
        ("MAP@R", -0.2, -0.1, -1),
        ("recall@1", -0.1, 0.2, 0),
        ("recall@1", None, None, 0),
    ):
        middle = 0.0 if low is None or high is None else (low + high) / 2
        assert Change(figure, 0.0, middle, Estimate(middle, low, high)).gain == gain


def test_differences_are_written_with_their_sign_in_points() -> None:
    assert (change_text(0.0123), change_text(-0.2)) == ("+1.23", "−20.00")
    assert (measure_text("Spearman", 0.87), measure_text("EER", 0.123)) == ("87.00", "12.30 %")


def test_a_collapsed_twin_or_a_single_kind_of_pair_gives_no_figure() -> None:
    flat = np.ones((120, 8), np.float32)
    assert changes_of_links((twins()[0], flat), SCORED, Metric.COSINE) == ()
    assert changes_of_links(twins(), pairs(np.zeros(60)), Metric.COSINE) == ()
    alone = changes_of_classes(
        (flat[:6], flat[:6]), LABELS[:6], None, Metric.COSINE, ways=5, trials=5
    )
    assert [one.figure for one in alone] == ["recall@1", "MAP@R"]
    assert alone[0].difference == Estimate(0.0)


# ---- a fine-tuned encoder ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = save_encoder(
        tmp_path_factory.mktemp("model") / "bert",
        BertModel(
            BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=48,
            )
        ),
    )
    save_modules(folder, "Transformer", "Pooling", "Normalize")
    save_pooling(folder, "mean_tokens")
    return folder


def finetuned(model: Path, out: Path, **settings: object) -> Run:
    data = questions.write_csv(out.parent / "q.csv", questions.rows(), ("text", "label"))
    plain: dict[str, object] = {
        "data": str(data),
        "out": str(out),
        "twin": "text_encoder",
        "weights": str(model),
        "learning_rate": 1e-3,
        "calibrate_fraction": 0.4,
        "report_fraction": 0.3,
        "classes_per_batch": 3,
        "items_per_class": 3,
        "max_steps": 6,
        "evaluate_every": 3,
        "one_shot_ways": 3,
        "one_shot_trials": 40,
    }
    with pytest.MonkeyPatch.context() as patch:
        for plot in ("draw_roc", "draw_distances"):  # which take longer than all else
            patch.setattr(f"twinserve.train.plots.{plot}", lambda *_: None)
        return train(TrainConfig(**{**plain, **settings}), progress=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finetuned(model, tmp_path_factory.mktemp("runs") / "run", dimension=16, seed=5)


def test_the_twin_as_it_came_is_that_of_step_0(run: Run) -> None:
    came = as_it_came(run.config, run.twin)
    assert came is not None
    with open(run.folder / "log.csv", newline="", encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    found = evaluate_part(came, run.part("calibrate"), run.config)
    assert first["step"] == "0"
    assert float(first["equal_error_rate"]) == found.equal_error_rate
    assert float(first["one_shot"]) == found.one_shot.accuracy


def test_a_run_and_its_page_hold_what_training_changed(run: Run) -> None:
    written = HeldOut.load(run.folder)
    assert [one.figure for one in written.changes] == [
        "EER", "recall@1", "MAP@R", "3-way 1-shot",
    ]  # fmt: skip
    known = estimates(written)
    for one in written.changes:
        assert one.after == known[one.figure].value
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "What training changed" in page
    for one in written.changes:
        assert change_text(one.difference.value) in page
    state = torch.get_rng_state()
    assert measure_again(run) == written
    assert torch.equal(torch.get_rng_state(), state)


def test_the_command_prints_it_for_one_run_and_for_several(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (change, *_) = HeldOut.load(run.folder).changes
    assert command_line.main(["report", str(run.folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    head = lines.index(
        ["FIGURE", "AS", "IT", "CAME", "TRAINED", "DIFFERENCE", "95", "%", "INTERVAL"]
    )
    assert lines[head + 1][0] == "EER"
    assert f"{100 * change.difference.value:+.2f}" in lines[head + 1]
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    assert command_line.main(["report", str(run.folder), str(other), "--json"]) == 0
    (first, *_) = json.loads(capsys.readouterr().out)["changes"]
    assert first["difference"] == pytest.approx(change.difference.value)
    assert first["standard_deviation"] == pytest.approx(0.0)
    assert command_line.main(["report", str(run.folder), str(other)]) == 0
    assert "AS IT CAME" in capsys.readouterr().out


def test_without_the_folder_it_came_from_nothing_is_compared(
    run: Run, model: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(model, tmp_path / "model")
    other = finetuned(moved, tmp_path / "run", max_steps=2)
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert as_it_came(other.config, other.twin) is None  # other files than it began with
    shutil.rmtree(moved)
    again = checkpoint.load(tmp_path / "run")
    assert as_it_came(again.config, again.twin) is None
    found = measure_again(again)
    assert found.changes == ()
    assert found.verification is not None
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "What training changed" not in page
    (only,) = pool_changes([found, HeldOut.load(run.folder)])[:1]
    assert only.values[0] is None


def test_a_page_warns_where_training_brought_nothing(model: Path, tmp_path: Path) -> None:
    still = finetuned(model, tmp_path / "run", learning_rate=1e-12, max_steps=2, evaluate_every=2)
    assert still.step == 0
    page = (still.folder / "report.html").read_text(encoding="utf-8")
    assert "The twin is the model as it came" in page
