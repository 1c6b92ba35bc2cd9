"""A twin's file calibrated on the user's own evidence, and left alone where that cannot be used."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import twins
from twinserve import manifest as manifests
from twinserve.calibration import pair_distances, threshold_at
from twinserve.distance import Metric, paired
from twinserve.errors import ConfigError, DataError, ManifestError
from twinserve.export import overlap
from twinserve.export.calibrations import calibrations_for
from twinserve.export.calibrator import Wishes, calibrate_file
from twinserve.export.labelled import Columns, read_labelled
from twinserve.manifest import ImageInput, Manifest, TensorInput
from twinserve.train.data import Labelled

CLASSES, EACH = 24, 6
ITEMS = CLASSES * EACH


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.onnx"
    path.write_bytes(twins.small_text_twin(calibrated=False))
    return path


@pytest.fixture
def vectors_file(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.onnx"
    path.write_bytes(twins.small_tensor_twin())
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A CSV of labelled texts."""
    texts, labels = twins.classes_of_texts(CLASSES, EACH, seed=3)
    names = [f"{label:02}" for label in labels.tolist()]
    return write_table(tmp_path / "questions.csv", zip(texts, names, strict=True), "text")


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A CSV of judged pairs of texts: no text stands in two of them."""
    texts, _ = twins.classes_of_texts(600, 4, seed=4)
    pairs = []
    for label in range(600):
        own = 4 * label
        pairs.append((texts[own], texts[own + 1], 1))
        pairs.append((texts[own + 2], texts[(own + 7) % len(texts)], 0))
    return write_table(tmp_path / "judged.csv", pairs, "first")


def write_table(path: Path, rows: Any, first: str) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label") if first == "text" else ("first", "second", "same"))
        writer.writerows(rows)
    return path


def write_vectors(path: Path, seed: int = 0, **changed: Any) -> Path:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), EACH)
    rows = generator.normal(size=(CLASSES, 8))[labels] + 0.4 * generator.normal(size=(ITEMS, 8))
    np.savez(path, **{"vectors": rows.astype(np.float32), "labels": labels, **changed})
    return path


def test_labelled_texts_set_the_thresholds_of_every_dimension(
    texts_file: Path, questions: Path
) -> None:
    before = manifests.read(texts_file)
    made = calibrate_file(texts_file, data=questions, wishes=Wishes(default_far=0.02))
    texts, labels = twins.classes_of_texts(CLASSES, EACH, seed=3)
    expected = calibrations_for(
        twins.embed_texts(texts),
        labels,
        metric=before.metric,
        dimension=before.dimension,
        truncations=before.truncations,
        precision="fp32",
        evidence="labels",
        default_far=0.02,
    )
    assert [(c.dimension, c.aggregation) for c in made.calibrations] == [
        (c.dimension, c.aggregation) for c in expected
    ]
    for one, other in zip(made.calibrations, expected, strict=True):
        assert one.evidence == "labels"
        assert len(one.data_digest) == 64
        assert one.classes == CLASSES
        assert one.equal_error_rate == pytest.approx(other.equal_error_rate, abs=1e-3)
    assert manifests.read(texts_file) == made


def test_only_the_calibrations_of_the_file_change(texts_file: Path, questions: Path) -> None:
    before, tokenizer = manifests.read(texts_file), manifests.read_tokenizer(texts_file)
    made = calibrate_file(texts_file, data=questions)
    assert dataclasses.replace(made, calibrations=()) == before
    assert manifests.read_tokenizer(texts_file) == tokenizer
    assert manifests.read_graph_digest(texts_file) == before.graph_digest
    again = texts_file.read_bytes()
    calibrate_file(texts_file, data=questions)
    assert texts_file.read_bytes() == again


def test_how_the_old_thresholds_fared_goes_with_them(texts_file: Path, questions: Path) -> None:
    tokenizer = manifests.read_tokenizer(texts_file)
    before = manifests.read(texts_file)
    report = {"equal_error_rate": 0.1, "at_the_thresholds": [{"threshold": 0.2}]}
    trained = dataclasses.replace(before, training={"loss": "triplet", "report": report})
    texts_file.write_bytes(manifests.attach(texts_file.read_bytes(), trained, tokenizer))
    after = calibrate_file(texts_file, data=questions)
    assert after.training == {"loss": "triplet", "report": {"equal_error_rate": 0.1}}


def test_out_leaves_the_file_alone_and_a_link_is_followed(
    texts_file: Path, questions: Path, tmp_path: Path
) -> None:
    before = texts_file.read_bytes()
    calibrate_file(texts_file, data=questions, out=tmp_path / "new.onnx")
    assert texts_file.read_bytes() == before
    assert manifests.read(tmp_path / "new.onnx").calibrations
    link = tmp_path / "link.onnx"
    link.symlink_to(texts_file)
    calibrate_file(link, data=questions)
    assert link.is_symlink()
    assert manifests.read(texts_file).calibrations


def test_judged_pairs_set_a_threshold_that_accepts_its_share_of_them(
    texts_file: Path, judged: Path
) -> None:
    made = calibrate_file(texts_file, pairs=judged)
    assert [(c.dimension, c.aggregation) for c in made.calibrations] == [(16, "item"), (8, "item")]
    with judged.open(encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    first, second = (twins.embed_texts([row[end] for row in rows]) for end in (0, 1))
    distances = paired(first, second, Metric.COSINE)
    impostor = distances[np.array([row[2] == "0" for row in rows])]
    entry = made.calibrations[0]
    assert (entry.evidence, entry.impostor_pairs, entry.genuine_pairs) == ("pairs", 600, 600)
    point = next(point for point in entry.points if point.false_accept_rate <= 0.1)
    assert point.threshold == pytest.approx(threshold_at(impostor, 0.1), abs=1e-5)


def test_pictures_are_calibrated_as_serving_decodes_them(tmp_path: Path) -> None:
    file = tmp_path / "pictures.onnx"
    file.write_bytes(twins.small_image_twin(calibrated=False))
    pixels, labels = twins.classes_of_pixels(20, 4, noise=200)
    for place, (square, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        home = tmp_path / f"data/{label:02}"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(square[:, :, 0]).save(home / f"{place:03}.png")
    made = calibrate_file(file, data=tmp_path / "data")
    pairs = pair_distances(twins.embed_pixels(pixels), labels, Metric.EUCLIDEAN)
    for point in made.calibrations[0].points:
        realised = float(np.mean(pairs.impostor <= point.threshold))
        assert realised == pytest.approx(point.false_accept_rate, abs=2 / len(pairs.impostor))


def test_vectors_are_calibrated_and_progress_is_told(vectors_file: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    steps: list[tuple[int, int]] = []
    calibrate_file(
        vectors_file,
        data=write_vectors(tmp_path / "set.npz"),
        threads=1,
        stage=stages.append,
        advance=lambda done, total: steps.append((done, total)),
    )
    assert (
        manifests.read(vectors_file).calibrations[0].impostor_pairs == ITEMS * (ITEMS - EACH) // 2
    )
    assert stages == ["reading the evidence", "embedding", "calibrating"]
    assert steps[-1] == (ITEMS, ITEMS)


def test_columns_may_have_names_of_their_own(
    texts_file: Path, questions: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(questions.read_text().replace("text,label", "utterance,meaning", 1))
    wishes = Wishes(columns=Columns("utterance", "meaning"))
    assert calibrate_file(texts_file, data=renamed, wishes=wishes).calibrations
    with pytest.raises(DataError, match="'phrase', which is no column"):
        calibrate_file(texts_file, data=renamed, wishes=Wishes(columns=Columns("phrase")))


@pytest.mark.parametrize("wishes", [Wishes(rates=(0.1, 1e-4)), Wishes(default_far=1e-4)])
def test_a_rate_that_the_evidence_does_not_carry_is_refused_with_what_it_would_take(
    texts_file: Path, questions: Path, judged: Path, wishes: Wishes
) -> None:
    before = texts_file.read_bytes()
    with pytest.raises(DataError) as caught:
        calibrate_file(texts_file, data=questions, wishes=wishes)
    message = caught.value.message
    assert "does not carry FAR 0.0001" in message
    assert f"(there are {CLASSES})" in message
    assert "nothing was written" in message
    with pytest.raises(DataError, match=r"300,000 pairs that are not the same \(there are 600\)"):
        calibrate_file(texts_file, pairs=judged, wishes=wishes)
    assert texts_file.read_bytes() == before


def test_a_rate_that_it_carries_is_no_obstacle(texts_file: Path, questions: Path) -> None:
    wishes = Wishes(rates=(0.1, 0.05), default_far=0.05)
    assert calibrate_file(texts_file, data=questions, wishes=wishes).calibrations


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Wishes(rates=(rate,))


def test_neither_or_both_kinds_of_evidence_are_refused(
    texts_file: Path, questions: Path, judged: Path
) -> None:
    for given in ({}, {"data": questions, "pairs": judged}):
        with pytest.raises(ConfigError, match="either --data or --pairs"):
            calibrate_file(texts_file, **given)
    with pytest.raises(ConfigError, match="there is no folder"):
        calibrate_file(texts_file, data=questions, out=texts_file / "no" / "new.onnx")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("text,label\none,a\ntwo,a\nthree,a\n", "all 3 items .* one class, 'a', .* no impostor"),
        ("text,label\none,a\ntwo,b\nthree,c\n", "3 labels, no two the same.* what they seem"),
        ("text,label\none,a\ntwo,\n", "line 3 .* empty label"),
        ("text,label\none,a\ntwo,nan\n", "line 3 .* NaN as its label"),
        ("text,label\none,a\n", "one class"),
    ],
)
def test_labels_that_are_not_labels_are_refused(
    texts_file: Path, tmp_path: Path, content: str, complaint: str
) -> None:
    table = tmp_path / "bad.csv"
    table.write_text(content)
    with pytest.raises(DataError, match=complaint):
        calibrate_file(texts_file, data=table)


def test_too_few_pairs_for_any_rate_are_refused(texts_file: Path, tmp_path: Path) -> None:
    table = tmp_path / "few.csv"
    table.write_text("text,label\nriver,a\nstone,a\nlamp,b\ncloud,b\n")
    with pytest.raises(DataError, match="4 impostor pairs carry no operating point"):
        calibrate_file(texts_file, data=table)


def test_evidence_of_another_modality_is_refused(
    texts_file: Path, vectors_file: Path, questions: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures.onnx"
    pictures.write_bytes(twins.small_image_twin())
    vectors = write_vectors(tmp_path / "set.npz")
    for file, data, complaint in (
        (texts_file, vectors, "this twin takes texts"),
        (texts_file, tmp_path, "this twin takes texts"),
        (vectors_file, questions, "this twin takes vectors"),
        (pictures, vectors, "this twin takes pictures"),
        (pictures, questions, "this twin takes pictures"),
    ):
        with pytest.raises(DataError, match=complaint):
            calibrate_file(file, data=data)


def test_labelled_data_of_training_calibrate_in_all_their_forms(tmp_path: Path) -> None:
    rows = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.savez(tmp_path / "v.npz", vectors=rows, labels=["a", "a", "b", "b"])
    np.save(tmp_path / "w.npy", rows)
    (tmp_path / "w_labels.txt").write_text("a\na\nb\nb\n")
    one, other = (
        read_labelled(tmp_path / name, TensorInput((4,))).digest for name in ("v.npz", "w.npy")
    )
    assert one == other
    for name in ("1.png", "2.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    table = tmp_path / "faces.csv"
    table.write_text("path,label\n1.png,a\n2.png,b\n")
    pixels = ImageInput(height=8, width=8, channels=1, color_order="L")
    assert read_labelled(table, pixels).class_names == ("a", "b")


def test_vectors_with_nan_are_refused(vectors_file: Path, tmp_path: Path) -> None:
    rows = np.zeros((ITEMS, 8), np.float32)
    rows[7, 2] = np.nan
    data = write_vectors(tmp_path / "set.npz", vectors=rows)
    with pytest.raises(DataError, match="NaN or infinity, the first is row 7"):
        calibrate_file(vectors_file, data=data)


def test_an_item_that_the_twin_maps_to_nothing_is_named(vectors_file: Path, tmp_path: Path) -> None:
    good = np.load(write_vectors(tmp_path / "set.npz"))
    for value, complaint in ((0.0, "'11' to zero"), (3e38, "infinity for '11'")):
        rows = good["vectors"].copy()
        rows[11] = value
        data = write_vectors(tmp_path / "bad.npz", vectors=rows)
        with pytest.raises(DataError, match=complaint):
            calibrate_file(vectors_file, data=data)


def with_training(file: Path, rows: np.ndarray, labels: np.ndarray) -> None:
    """Write into the file that the twin was trained on these."""
    train = Labelled(rows, labels, tuple(map(str, range(CLASSES))), tuple(map(str, labels)))
    made = dataclasses.replace(
        manifests.read(file), training={overlap.KEY: overlap.sketches(train)}
    )
    file.write_bytes(manifests.attach(file.read_bytes(), made))


def test_evidence_that_the_twin_was_trained_on_is_refused(
    vectors_file: Path, tmp_path: Path
) -> None:
    seen = np.load(write_vectors(tmp_path / "seen.npz"))
    with_training(vectors_file, seen["vectors"], seen["labels"])
    before = vectors_file.read_bytes()
    with pytest.raises(DataError, match=f"was trained on: {ITEMS} of its {ITEMS}"):
        calibrate_file(vectors_file, data=tmp_path / "seen.npz")
    pairs = {"first": seen["vectors"][:-1], "second": seen["vectors"][1:]}
    same = seen["labels"][:-1] == seen["labels"][1:]
    np.savez(tmp_path / "pairs.npz", **pairs, same=same)
    with pytest.raises(DataError, match="overlaps what the twin was trained on"):
        calibrate_file(vectors_file, pairs=tmp_path / "pairs.npz")
    assert vectors_file.read_bytes() == before
    assert calibrate_file(vectors_file, data=write_vectors(tmp_path / "new.npz", seed=1))


def test_a_graph_that_is_not_the_manifests_is_refused(texts_file: Path, questions: Path) -> None:
    other = dataclasses.replace(manifests.read(texts_file), graph_digest="0" * 64)
    tokenizer = manifests.read_tokenizer(texts_file)
    texts_file.write_bytes(manifests.attach(texts_file.read_bytes(), other, tokenizer))
    with pytest.raises(ManifestError, match="not the one that its manifest describes"):
        calibrate_file(texts_file, data=questions)


def test_what_is_known_of_other_precisions_is_kept(texts_file: Path, questions: Path) -> None:
    made = calibrate_file(texts_file, data=questions)
    foreign = dataclasses.replace(made.calibrations[0], precision="int8")
    mixed: Manifest = dataclasses.replace(made, calibrations=(foreign, *made.calibrations))
    tokenizer = manifests.read_tokenizer(texts_file)
    texts_file.write_bytes(manifests.attach(texts_file.read_bytes(), mixed, tokenizer))
    assert calibrate_file(texts_file, data=questions).calibrations == (*made.calibrations, foreign)


class TestVerb:
    def call(self, *arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
        """Run the verb in a process of its own, where torch cannot be imported."""
        program = (
            "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None;"
            "from twinserve.cli.__main__ import main; sys.exit(main(sys.argv[1:]))"
        )
        return subprocess.run(
            [sys.executable, "-c", program, "calibrate", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )

    def test_it_shows_what_it_found_without_torch(self, texts_file: Path, questions: Path) -> None:
        done = self.call(texts_file, "--data", questions, "--far", "0.03")
        assert done.returncode == 0, done.stderr
        assert "texts@1, fp32" in done.stdout
        assert "labelled data of the user's" in done.stdout
        rows = [line.split() for line in done.stdout.splitlines()]
        assert ["0.0001", "too", "little", "evidence"] in rows
        assert any(row[:1] == ["0.03"] and len(row) == 6 for row in rows)
        assert f"wrote {texts_file}" in done.stdout
        assert done.stderr == "reading the evidence …\nembedding …\ncalibrating …\n"

    def test_json_is_the_new_manifest(self, texts_file: Path, judged: Path, tmp_path: Path) -> None:
        out = tmp_path / "new.onnx"
        done = self.call(texts_file, "--pairs", judged, "--out", out, "--json")
        assert json.loads(done.stdout) == json.loads(manifests.read(out).to_json())

    def test_a_rate_that_is_not_carried_ends_with_2_and_the_numbers(
        self, texts_file: Path, questions: Path
    ) -> None:
        done = self.call(texts_file, "--data", questions, "--far", "1e-6")
        assert (done.returncode, done.stdout) == (2, "")
        assert "does not carry FAR 1e-06" in done.stderr
        assert "would take about" in done.stderr
