"""Trainings on pairs and triplets: they learn, choose by what the data allow, and load again."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train import links, questions
from tests.train.links import config, trained
from twinserve.distance import Metric
from twinserve.errors import ConfigError, DataError
from twinserve.train import checkpoint
from twinserve.train.checkpoint import Run
from twinserve.train.components import LinkSplits
from twinserve.train.config import TrainConfig
from twinserve.train.data import Batch
from twinserve.train.evaluate import embed
from twinserve.train.held_out import HeldOut
from twinserve.train.judged import JudgedFigures, average_precision, figures_of, partners_found
from twinserve.train.loop import train
from twinserve.train.objective import Objective
from twinserve.train.outcome import measure_again
from twinserve.train.pairs import LinkBatch, PairData, TripletData


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    for plot in ("draw_roc", "draw_distances"):  # which take longer than all else
        monkeypatch.setattr(f"twinserve.train.plots.{plot}", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return links.write(tmp_path_factory.mktemp("links"))


def log(run: Run) -> list[dict[str, str]]:
    with open(run.folder / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


FORMS = [
    ("pairs", {"loss": "contrastive"}, ["equal_error_rate", "average_precision"]),
    ("pairs", {"loss": "concatenation", "balanced_pairs": True}, ["equal_error_rate"]),
    ("scored", {"loss": "cosine_mse", "score_range": "2..4"}, ["spearman"]),
    ("same", {"loss": "multiple_negatives", "pairs_per_batch": 16}, ["recall_at_1"]),
    ("triplets", {"loss": "triplet"}, ["right_order", "equal_error_rate"]),
    ("triplets", {"loss": "multiple_negatives"}, ["right_order"]),
]


@pytest.mark.parametrize(("table", "settings", "columns"), FORMS)
def test_a_training_chooses_by_what_its_data_allow_and_its_run_loads_again(
    folder: Path, tmp_path: Path, table: str, settings: dict[str, object], columns: list[str]
) -> None:
    run = trained(folder, table, tmp_path, **settings)
    rows = log(run)
    assert [row["step"] for row in rows] == ["20", "40"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert list(rows[0])[6 : 6 + len(columns)] == columns
    report = run.results["report"]
    assert set(columns) < set(report)
    assert report["triplets" if table == "triplets" else "pairs"] == len(run.splits.report)
    assert json.loads((tmp_path / "report.json").read_text())["report"] == report
    best = next(row for row in rows if int(row["step"]) == run.step)
    assert float(best[columns[0]]) == run.results["calibrate"][columns[0]]

    again = checkpoint.load(tmp_path)
    assert isinstance(again.splits, LinkSplits)
    assert json.loads((tmp_path / "splits.json").read_text()) == again.splits.to_dict()
    part = again.linked_part("report")
    assert figures_of(embed(again.twin, part.rows), part, again.twin.metric).to_dict() == report
    written = HeldOut.load(tmp_path)
    assert measure_again(again) == written
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{len(part):,} {'triplets' if table == 'triplets' else 'judged pairs'}" in page
    with pytest.raises(ConfigError, match="and this takes labelled items"):
        again.part("report")


def test_training_on_pairs_beats_the_vectors_as_they_are(folder: Path, tmp_path: Path) -> None:
    run = trained(folder, "pairs", tmp_path, loss="contrastive")
    baseline = run.results["baseline"]
    assert baseline["beaten"]
    assert run.results["report"]["equal_error_rate"] < baseline["equal_error_rate"] - 0.05


def test_equal_seeds_give_equal_twins_of_pairs(folder: Path, tmp_path: Path) -> None:
    states = [
        trained(
            folder, "pairs", tmp_path / str(index), loss="contrastive", max_steps=3, seed=seed
        ).twin.state_dict()
        for index, seed in enumerate((1, 1, 2))
    ]
    same, other = (
        all(torch.equal(states[0][name], state[name]) for name in states[0]) for state in states[1:]
    )
    assert same
    assert not other


@pytest.mark.parametrize(
    ("table", "settings", "said"),
    [
        ("pairs", {}, "set loss=contrastive, or loss=cosine_mse where they have scores"),
        ("scored", {"score_range": "2..4"}, "set loss=cosine_mse different_cosine=0"),
        ("pairs", {"loss": "triplet"}, "pairs are taken by contrastive, cosine_mse"),
        ("triplets", {}, "set loss=triplet"),
        ("triplets", {"loss": "triplet", "mining": "batch_hard"}, "chosen already; unset it"),
    ],
)
def test_a_loss_that_does_not_take_the_form_is_refused_before_the_items_are_read(
    folder: Path, tmp_path: Path, table: str, settings: dict[str, object], said: str
) -> None:
    asked = config(folder, table, tmp_path / "run", **settings)
    with pytest.raises(ConfigError, match=said):
        train(dataclasses.replace(asked, items="nowhere.npy"), progress=False)


def test_pairs_that_are_all_the_same_are_refused_by_a_loss_that_needs_both(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="or set loss=multiple_negatives"):
        trained(folder, "same", tmp_path, loss="contrastive")


def test_a_run_of_pairs_whose_data_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes((folder / "pairs.csv").read_bytes())
    asked = config(folder, "pairs", tmp_path / "run", loss="contrastive", max_steps=1)
    run = train(dataclasses.replace(asked, data=str(tmp_path / "pairs.csv")), progress=False)
    content = (tmp_path / "pairs.csv").read_text(encoding="utf-8").replace(",0\n", ",1\n", 1)
    (tmp_path / "pairs.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="has changed since"):
        checkpoint.load(run.folder).linked_part("train")


def test_a_page_says_where_items_stand_in_two_parts(folder: Path, tmp_path: Path) -> None:
    links.write_split(folder, tmp_path, ("train", "train", "calibrate", "report"))
    settings = {"split_column": "set", "allow_shared_items": True, "max_steps": 1}
    run = trained(tmp_path, "pairs", tmp_path / "run", loss="contrastive", **settings)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"{run.splits.shared[1]} hold an item that another part" in page
    assert "that it never saw" not in page


def test_texts_train_in_pairs_too(tmp_path: Path) -> None:
    rows = questions.rows()
    pairs: list[tuple[str, ...]] = [
        (f"{one} {n}", f"{other} {n}", str(int(topic == label)))
        for n, (one, topic) in enumerate(rows)
        for other, label in rows[n % 6 :: 6]
    ]
    path = questions.write_csv(tmp_path / "t.csv", pairs, ("text1", "text2", "same"))
    run = train(
        TrainConfig(
            data=str(path),
            out=str(tmp_path / "run"),
            twin="words",
            loss="contrastive",
            word_dimension=16,
            max_steps=2,
        ),
        progress=False,
    )
    assert run.results["baseline"]["of"] == "bags of words"


# ---- figures -------------------------------------------------------------------------------------


def test_average_precision_weighs_precision_by_the_recall_it_adds() -> None:
    distances = np.array([0.1, 0.2, 0.3, 0.4])
    same = np.array([True, False, True, False])
    assert average_precision(distances, same) == pytest.approx((1 / 1 + 2 / 3) / 2)
    # What stands at one threshold counts together, in whatever order.
    assert average_precision(np.array([0.1, 0.1]), np.array([False, True])) == 0.5


def test_the_better_twin_has_fewer_errors_or_more_of_all_else() -> None:
    def rank(**values: float) -> tuple[float, ...]:
        return JudgedFigures("cosine", {}, values).rank

    assert rank(equal_error_rate=0.1, average_precision=0.8) > rank(
        equal_error_rate=0.2, average_precision=0.9
    )
    assert rank(equal_error_rate=0.1, average_precision=0.9) > rank(
        equal_error_rate=0.1, average_precision=0.8
    )
    assert rank(spearman=0.5) > rank(spearman=-0.6)
    assert rank(right_order=0.9, equal_error_rate=0.2) > rank(right_order=0.8, equal_error_rate=0.1)


def test_figures_of_triplets_count_ties_as_wrong() -> None:
    points = np.array([[0.0, 1], [1, 1], [1, 2], [-1, 1]], dtype=np.float32)
    members = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 1]])
    data = TripletData(points, tuple("abcd"), members)
    found = figures_of(points, data, Metric.EUCLIDEAN).values
    assert found["right_order"] == pytest.approx(1 / 3)


def test_any_partner_of_an_item_is_right_and_the_item_itself_is_none() -> None:
    points = np.array([[0.0], [1], [2], [10], [2.5]], dtype=np.float32)
    data = PairData(
        points,
        tuple("abcde"),
        np.array([[0, 1], [0, 2], [1, 0], [3, 4], [4, 3]]),
        np.ones(5, dtype=np.float32),
    )
    found = partners_found(points, data, Metric.EUCLIDEAN)
    # Of b (1) c (2) is as near as a (0), which comes first; of e (2.5) c is nearer than d (10).
    assert found.tolist() == [True, True, True, True, False]


def test_a_batch_is_measured_by_what_it_is_made_of() -> None:
    objective = Objective(TrainConfig(loss="contrastive", metric="euclidean", normalized=False))
    embeddings = torch.tensor([[0.0], [5.0], [1.0], [5.5]])  # two firsts, then two seconds
    batch = LinkBatch(np.array([[0, 1], [2, 3]]), np.array([1.0, 0.0], dtype=np.float32))
    _, figures = objective.of_batch(batch, embeddings, torch.Generator())
    assert (figures.genuine, figures.impostor) == (1.0, 0.5)
    classes = Batch(np.arange(4), np.zeros(4, np.int64), np.array([0, 1, 0, 1]))
    _, figures = objective.of_batch(classes, embeddings, torch.Generator())
    assert figures.genuine == pytest.approx(0.75)
