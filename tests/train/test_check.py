"""A check names what would spoil a training, and a training stops at the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.train import drawings, questions
from twinserve.errors import DataError
from twinserve.train import evidence
from twinserve.train.check import check, examine
from twinserve.train.config import TrainConfig
from twinserve.train.findings import Checked, Finding
from twinserve.train.loop import train
from twinserve.train.material import prepare


def config(path: Path, **settings: object) -> TrainConfig:
    return TrainConfig(data=str(path), **{"twin": "words", **settings})  # type: ignore[arg-type]


def found(checked: Checked) -> dict[str, Finding]:
    return {finding.kind: finding for finding in checked.findings}


def stops(checked: Checked) -> list[str]:
    return sorted(finding.kind for finding in checked.findings if finding.stops)


def vectors(path: Path, rows: np.ndarray, labels: list[str]) -> Path:
    np.savez(path, vectors=rows.astype(np.float32), labels=labels)
    return path


@pytest.fixture
def distinct() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(120, 4))


LABELS = [f"c{row % 20:02}" for row in range(120)]


def test_good_data_are_described_and_nothing_stops(tmp_path: Path, distinct: np.ndarray) -> None:
    path = vectors(tmp_path / "v.npz", distinct, LABELS)
    checked = examine(config(path, twin="mlp", classes_per_batch=8))
    assert checked.good
    assert not checked.findings
    facts = checked.facts
    assert (facts["modality"], facts["form"], facts["items"]) == ("tensor", "labelled", 120)
    assert facts["items_per_class"] == {"least": 6, "median": 6, "most": 6}
    assert facts["parts"]["calibrate"] == {"classes": 4, "items": 24}
    assert facts["batches"] == {"classes": 8, "items_per_class": 4}
    # 24 * 23 / 2 - 4 * 15 impostor pairs, and thirty of them behind a rate.
    assert facts["evidence"]["impostor_pairs"] == 216
    assert facts["evidence"]["smallest_rate_at_best"] == pytest.approx(30 / 216)
    assert json.loads(json.dumps(checked.to_dict()))["findings"] == []


def test_every_broken_picture_is_named_and_those_above_the_limit_stop(tmp_path: Path) -> None:
    content = drawings.files(groups=1, classes=10, items=4)
    broken = ("alphabet0/letter02/01.png", "alphabet0/letter07/00.png")
    content |= dict.fromkeys(broken, b"no picture") | {"alphabet0/letter01/x.pgm": b"P5"}
    folder = drawings.write_folder(tmp_path, content)
    checked = examine(config(folder, twin="conv4"))
    assert stops(checked) == ["broken_image"]
    assert [item.split(":")[0] for item in found(checked)["broken_image"].items] == [*broken]
    assert checked.facts["pictures"]["widths"] == {"least": 40, "median": 40, "most": 40}
    assert "1 picture of formats" in found(checked)["other_formats"].message
    checked = examine(config(folder, twin="conv4", max_broken_images=2))
    assert checked.good
    assert (
        "2 pictures cannot be decoded, and will be left out"
        in found(checked)["broken_image"].message
    )


def test_equal_items_with_two_labels_and_on_two_sides_stop(
    tmp_path: Path, distinct: np.ndarray
) -> None:
    rows = distinct.copy()
    rows[60:80] = rows[:20]  # a copy in the same class
    copies = examine(config(vectors(tmp_path / "a.npz", rows, LABELS), twin="mlp"))
    assert not stops(copies)
    assert "20 items are copies" in found(copies)["duplicates"].message
    rows[60:80] = rows[1:21]  # a copy in the next class
    checked = examine(config(vectors(tmp_path / "b.npz", rows, LABELS), twin="mlp"))
    assert stops(checked) == ["conflicting_labels", "duplicates_across_parts"]
    assert checked.facts["duplicates"]["in_two_parts"] > 0


def test_zero_vectors_and_nan_are_counted(tmp_path: Path, distinct: np.ndarray) -> None:
    rows = distinct.copy()
    rows[3] = 0
    checked = examine(config(vectors(tmp_path / "a.npz", rows, LABELS), twin="mlp"))
    assert not stops(checked)
    assert found(checked)["zero_vectors"].items == ("3",)
    rows[4, 1] = np.nan
    checked = examine(config(vectors(tmp_path / "b.npz", rows, LABELS), twin="mlp"))
    assert stops(checked) == ["nan_vectors"]
    assert checked.facts["items"] == 119


def test_lines_that_cannot_be_used_are_gathered_and_long_texts_counted(tmp_path: Path) -> None:
    lines: list[tuple[str, ...]] = [*questions.rows(), ("", "pin"), (" ", "fee"), ("x", "nan")]
    lines.append(("word " * 50, "pin"))
    path = questions.write_csv(tmp_path / "q.csv", lines, ("text", "label"))
    checked = examine(config(path, max_tokens=40))
    assert stops(checked) == ["empty_text", "no_label"]
    assert len(found(checked)["empty_text"].items) == 2
    assert "1 of 61 texts (1.6%)" in found(checked)["long_texts"].message
    assert checked.facts["tokens"]["cut"] == pytest.approx(1 / 61)


def test_a_class_of_one_item_stops_with_all_such_classes_listed(tmp_path: Path) -> None:
    lines = [*questions.rows(), ("lonely", "one"), ("alone", "two")]
    path = questions.write_csv(tmp_path / "q.csv", [*lines], ("text", "label"))
    checked = examine(config(path))
    assert stops(checked) == ["unusable"]
    assert "has a single item (as have 1 more)" in found(checked)["unusable"].message
    assert checked.facts["classes_of_one_item"] == ["one", "two"]
    path = questions.write_csv(tmp_path / "q.csv", lines[:-1], ("text", "label"))
    assert "has a single item; a genuine" in found(examine(config(path)))["unusable"].message


def test_batches_that_come_out_smaller_or_alone_are_told(
    tmp_path: Path, distinct: np.ndarray
) -> None:
    grouped = [f"g{label[1:]}/{label}" for label in LABELS]  # a group per class
    path = vectors(tmp_path / "v.npz", distinct, grouped)
    checked = examine(config(path, twin="mlp", items_per_class=8, one_group_share=0.8))
    assert stops(checked) == ["batches_of_one_class"]
    assert "hold all 12 training classes" in found(checked)["small_batches"].message
    assert len(found(checked)["repeated_items"].items) == 12


def test_pairs_judged_both_ways_and_of_one_kind_stop(tmp_path: Path) -> None:
    rows: list[tuple[str, ...]] = [(f"a{n}", f"b{n}", "1") for n in range(40)]
    checked = examine(config(questions.write_csv(tmp_path / "a.csv", rows, ("first", "second"))))
    rows = [(*row[:2], str(n % 2)) for n, row in enumerate(rows)]
    rows += [("B1", "a1 ", "0"), ("b2", "b2", "0")]
    path = questions.write_csv(tmp_path / "b.csv", rows, ("first", "second", "same"))
    checked = examine(config(path, balanced_pairs=True))
    assert stops(checked) == ["conflicting_labels"]
    assert len(found(checked)["conflicting_labels"].items) == 3
    assert checked.facts["judgements"]["same"] == 20
    path = questions.write_csv(tmp_path / "c.csv", rows[1:40:2], ("first", "second", "same"))
    checked = examine(config(path, balanced_pairs=True))
    assert stops(checked) == ["one_judgement_alone", "unbalanced"]


def test_scores_are_refused_by_a_loss_that_takes_labels(tmp_path: Path) -> None:
    rows = [(f"a{n}", f"b{n}", str(n % 6)) for n in range(30)]
    path = questions.write_csv(tmp_path / "a.csv", rows, ("first", "second", "score"))
    checked = examine(config(path, score_range="0..5", loss="contrastive"))
    assert stops(checked) == ["labels_outside_the_loss"]
    checked = examine(config(path, score_range="0..4"))
    assert stops(checked) == ["bad_judgement"]
    assert len(found(checked)["bad_judgement"].items) == 5


def test_fewer_pairs_than_a_batch_asks_for_are_told(tmp_path: Path) -> None:
    rows = [(f"a{n}", f"b{n}", str(n % 2)) for n in range(40)]
    path = questions.write_csv(tmp_path / "a.csv", rows, ("first", "second", "same"))
    checked = examine(config(path, pairs_per_batch=64, loss="contrastive"))
    assert checked.good
    said = found(checked)["small_batches"].message
    assert "hold all 24 training pairs, where pairs_per_batch" in said


def test_triplets_that_cannot_be_met_stop(tmp_path: Path) -> None:
    rows = [(f"a{n}", f"p{n}", f"n{n}") for n in range(30)]
    rows += [("a1", "n1", "p1"), ("a2", "p2", "A2")]
    path = questions.write_csv(tmp_path / "t.csv", rows, ("anchor", "positive", "negative"))
    checked = examine(config(path))
    assert stops(checked) == ["conflicting_labels"]
    assert "3 triplets" in found(checked)["conflicting_labels"].message


def test_evidence_for_a_rate_is_counted_as_calibration_counts_it() -> None:
    facts, lacking = evidence.of_classes(np.array([20] * 24), (0.01, 0.0001))
    assert facts["impostor_pairs"] == 24 * 23 // 2 * 400
    assert facts["smallest_rate_at_best"] == pytest.approx(30 / 110_400)
    assert facts["smallest_rate_at_worst"] == pytest.approx(5 / 276)  # of as many pairs of classes
    assert len(lacking) == 1
    assert lacking[0].asked
    assert "a false accept rate of 0.0001" in lacking[0].message
    assert "about 40 classes" in lacking[0].message  # 24 * sqrt(300,000 / 110,400)
    facts, lacking = evidence.of_classes(np.array([50, 50, 50]), ())
    assert facts["smallest_rate_at_best"] is None  # three pairs of classes, where it takes five
    assert facts["smallest_rate_at_worst"] is None
    assert not lacking[0].asked
    assert evidence.of_pairs(3000, (0.01,))[1] == []
    assert evidence.of_pairs(2999, (0.01,))[1][0].asked
    assert evidence.of_pairs(60, ())[1] == []  # a rate of a half
    assert not evidence.of_pairs(59, ())[1][0].asked


def test_a_training_stops_where_a_check_does_and_writes_what_was_found(
    tmp_path: Path, distinct: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    path = vectors(tmp_path / "v.npz", distinct, LABELS)
    run = tmp_path / "run"
    asked = config(path, twin="mlp", out=str(run), false_accept_rates=(0.001,))
    with pytest.raises(DataError, match=r"false accept rate of 0\.001 .*hold out about"):
        train(asked)
    written = json.loads((run / "data.json").read_text())
    assert written["findings"] == check(prepare(asked), asked).to_dict()["findings"]
    assert not (run / "splits.json").exists()
    assert stops(examine(asked)) == ["too_little_evidence"]


def test_no_such_path_is_an_error_rather_than_a_finding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        examine(config(tmp_path / "none.csv"))
