"""Vectors from .npy, Parquet and tables, and pictures from tables: read alike, refused by place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.train import drawings, questions
from twinserve.errors import DataError
from twinserve.train.config import TrainConfig
from twinserve.train.data import Labelled
from twinserve.train.faults import Faults
from twinserve.train.material import Material, prepare, read_again
from twinserve.train.vectors import VectorColumns, load_vectors

VECTORS = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
LABELS = [f"c{row % 10}" for row in range(60)]


def prepared(path: Path, **settings: object) -> Material:
    """Prepare data, and see that a finished run would read the same again."""
    config = TrainConfig(data=str(path), **{"twin": "mlp", **settings})  # type: ignore[arg-type]
    material = prepare(config)
    again = read_again(config, material.contract, material.tokenizer)
    assert again.digest == material.labelled.digest
    return material


def same(one: Labelled, other: Labelled) -> bool:
    return one.class_names == other.class_names and one.digest == other.digest


@pytest.fixture
def npz(tmp_path: Path) -> Labelled:
    np.savez(tmp_path / "v.npz", vectors=VECTORS, labels=LABELS)
    return load_vectors(tmp_path / "v.npz")


def test_an_npy_finds_its_labels_beside_it_or_where_it_is_told(
    tmp_path: Path, npz: Labelled
) -> None:
    np.save(tmp_path / "w.npy", VECTORS)
    with pytest.raises(DataError, match=r"no labels beside it \(w_labels\.npy or w_labels\.txt\)"):
        prepared(tmp_path / "w.npy")
    (tmp_path / "w_labels.txt").write_text("\n".join(LABELS) + "\n")
    assert same(prepared(tmp_path / "w.npy").labelled, npz)
    np.save(tmp_path / "other.npy", np.array(LABELS))
    assert same(prepared(tmp_path / "w.npy", labels=str(tmp_path / "other.npy")).labelled, npz)
    np.save(tmp_path / "other.npy", np.array(LABELS[:-1]))
    with pytest.raises(DataError, match=r"have shape \(59,\) for 60 vectors; give one a vector"):
        prepared(tmp_path / "w.npy", labels=str(tmp_path / "other.npy"))


def test_rows_that_cannot_be_used_are_left_out_and_the_others_keep_their_numbers(
    tmp_path: Path,
) -> None:
    rows = VECTORS.copy()
    rows[1, 0] = np.nan
    np.savez(tmp_path / "v.npz", vectors=rows, labels=["", *LABELS[1:]])
    faults = Faults(gather=True)
    labelled = load_vectors(tmp_path / "v.npz", faults=faults)
    assert labelled.names[:2] == ("2", "3")
    assert len(labelled) == len(labelled.rows) == 58
    assert "" not in labelled.class_names
    assert [fault.kind for fault in faults.found] == ["nan_vectors", "no_label"]


def test_a_table_labels_vectors_by_row_and_names_their_part(tmp_path: Path, npz: Labelled) -> None:
    np.save(tmp_path / "w.npy", VECTORS)
    parts = ("train", "calibrate", "report")
    rows = [(str(n), label, parts[int(label[1:]) % 3]) for n, label in enumerate(LABELS)]
    path = questions.write_csv(tmp_path / "l.csv", rows, ("row", "label", "part"))
    material = prepared(path, items=str(tmp_path / "w.npy"), split_column="part")
    assert same(material.labelled, npz)
    assert material.splits.calibrate == ("c1", "c4", "c7")
    assert material.splits.report == ("c2", "c5", "c8")


def test_a_part_that_a_column_does_not_name_is_drawn_from_the_training_classes(
    tmp_path: Path,
) -> None:
    rows = [(f"text {n}", f"c{n % 12:02}", "test" if n % 12 < 3 else "train") for n in range(48)]
    path = questions.write_csv(tmp_path / "l.csv", rows, ("text", "label", "part"))
    one, same, other = (
        prepared(path, twin="words", split_column="part", seed=seed).splits for seed in (0, 0, 1)
    )
    assert one == same != other
    assert one.report == ("c00", "c01", "c02")
    assert len(one.calibrate) == 2
    assert len({*one.train, *one.calibrate, *one.report}) == 12


def test_a_class_in_two_parts_is_refused(tmp_path: Path) -> None:
    rows = [("a", "x", "train"), ("b", "x", "test"), ("c", "y", "dev")]
    path = questions.write_csv(tmp_path / "l.csv", rows, ("text", "label", "part"))
    with pytest.raises(DataError, match="puts class 'x' into train and into report"):
        prepared(path, twin="words", split_column="part")


class TestParquet:
    """Runs where pyarrow is installed."""

    @pytest.fixture(autouse=True)
    def _pyarrow(self) -> None:
        pytest.importorskip("pyarrow")

    def write(self, path: Path, **columns: object) -> Path:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table(columns), path)
        return path

    def test_columns_are_found_by_their_usual_names_or_as_told(
        self, tmp_path: Path, npz: Labelled
    ) -> None:
        # As `twinserve gallery export` writes them.
        usual = self.write(tmp_path / "u.parquet", subject=LABELS, embedding=VECTORS.tolist())
        assert same(prepared(usual).labelled, npz)
        parts = ["train" if label < "c4" else "dev" if label < "c7" else "test" for label in LABELS]
        told = self.write(tmp_path / "t.parquet", who=LABELS, v=VECTORS.tolist(), side=parts)
        material = prepared(told, columns=("v", "who"), split_column="side")
        assert same(material.labelled, npz)
        assert material.splits.report == ("c7", "c8", "c9")
        with pytest.raises(DataError, match=r"columns who, v, side, and none .* is embedding or"):
            prepared(told)

    def test_a_table_names_its_vectors_by_id(self, tmp_path: Path, npz: Labelled) -> None:
        ids = [f"n{row}" for row in range(60)]
        vectors = self.write(tmp_path / "v.parquet", id=ids, embedding=VECTORS.tolist())
        rows = [(name, label) for name, label in zip(ids, LABELS, strict=True)]
        path = questions.write_csv(tmp_path / "l.csv", rows, ("id", "label"))
        found = prepared(path, items=str(vectors)).labelled
        assert np.array_equal(np.asarray(found.rows), np.asarray(npz.rows))
        assert found.names[3] == "n3"

    @pytest.mark.parametrize(
        ("columns", "named"),
        [
            ({"embedding": [[1.0], [1.0, 2.0]]}, "lists of 1 to 2 numbers"),
            ({"embedding": [[1.0], None]}, "lacks 1 of its vectors"),
            ({"embedding": [[1.0], [None]]}, "1 of them missing"),
            ({"embedding": ["a", "b"]}, "holds string; write lists of float32"),
            ({"embedding": [[1.0], [float("nan")]]}, "hold NaN or infinity, the first is row 1"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(
        self, tmp_path: Path, columns: dict[str, object], named: str
    ) -> None:
        path = self.write(tmp_path / "v.parquet", label=["a", "b"], **columns)
        with pytest.raises(DataError, match=named):
            load_vectors(path)

    def test_what_is_no_parquet_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "v.parquet").write_bytes(b"vectors")
        with pytest.raises(DataError, match="not a whole Parquet file"):
            load_vectors(tmp_path / "v.parquet")
        with pytest.raises(DataError, match="does not exist"):
            load_vectors(tmp_path / "none.parquet")


def test_a_split_column_is_of_tables_and_parquet(tmp_path: Path, npz: Labelled) -> None:
    with pytest.raises(DataError, match="has no columns; write the labels"):
        load_vectors(tmp_path / "v.npz", columns=VectorColumns(split_column="part"))


def test_pictures_are_labelled_by_a_table_of_their_paths(tmp_path: Path) -> None:
    content = drawings.files(groups=1, classes=10, items=3)
    drawings.write_folder(tmp_path / "p", content)
    rows = [(f"p/{name}", name.split("/")[1]) for name in content]
    path = questions.write_csv(tmp_path / "l.csv", rows, ("path", "who"))
    found = prepared(path, twin="conv4", label_column="who")
    assert len(found.labelled.class_names) == 10
    assert np.asarray(found.labelled.rows).shape == (30, 28, 28, 1)
    whole = prepared(tmp_path / "p", twin="conv4").labelled
    assert np.array_equal(np.asarray(whole.rows), np.asarray(found.labelled.rows))

    twice = questions.write_csv(tmp_path / "t.csv", [*rows, (rows[0][0], "x")], ("path", "label"))
    with pytest.raises(DataError, match=r"line 32 of .* 'x', which an earlier line calls"):
        prepared(twice, twin="conv4")
    lost = questions.write_csv(tmp_path / "m.csv", [*rows, ("p/no.png", "x")], ("path", "label"))
    with pytest.raises(DataError, match=r"1 broken image in .*; the last is p/no\.png"):
        prepared(lost, twin="conv4")
    assert len(prepared(lost, twin="conv4", max_broken_images=1).labelled) == 30
