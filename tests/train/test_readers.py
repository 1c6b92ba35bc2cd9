"""Texts and vectors are read as they are meant; what cannot be meant is refused by its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train import questions
from twinserve.errors import DataError
from twinserve.manifest import TensorInput
from twinserve.tokens import Tokenizer
from twinserve.train import vocabulary
from twinserve.train.readers import load_texts, read_texts
from twinserve.train.vectors import load_vectors


def tokenizer(texts: list[str], most: int = 16) -> Tokenizer:
    made = vocabulary.train_tokenizer(texts, 200)
    return Tokenizer(made, vocabulary.contract_for(made, most))


@pytest.mark.parametrize("header", [(), ("text", "label"), ("Sentence", "Intent")])
def test_a_csv_reads_alike_with_and_without_a_header(
    tmp_path: Path, header: tuple[str, ...]
) -> None:
    texts = read_texts(questions.write_csv(tmp_path / "q.csv", [*questions.rows()], header))
    assert len(texts.texts) == len(questions.TOPICS) * len(questions.FRAMES)
    assert texts.class_names == tuple(sorted(questions.TOPICS))
    assert texts.class_names[texts.labels[0]] == "lost_card"


def test_columns_are_taken_by_name_by_number_and_by_their_usual_names(tmp_path: Path) -> None:
    lines: list[tuple[str, ...]] = [("1", "a", "hello, you"), ("2", "b", "bye")]
    named = questions.write_csv(tmp_path / "n.csv", lines, ("id", "topic", "words"))
    bare = questions.write_csv(tmp_path / "b.csv", lines)
    usual = questions.write_csv(tmp_path / "u.csv", lines, ("id", "category", "text"))
    expected = ("hello, you", "bye")
    assert read_texts(named, text_column="words", label_column="topic").texts == expected
    assert read_texts(bare, text_column="3", label_column="2").texts == expected
    found = read_texts(usual)
    assert (found.texts, found.class_names) == (expected, ("a", "b"))


def test_tabs_separate_a_tsv_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("text\tlabel\nhe said, \ta\nyou\tb\n", encoding="utf-8-sig")
    assert read_texts(tmp_path / "q.tsv").texts == ("he said,", "you")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "holds no lines"),
        (b"text,label\n", "a header alone"),
        (b"text,label\nhi,a\n ,a\n", "line 3 of .* has an empty text"),
        (b"text,label\nhi,a\nho,\n", "line 3 of .* an empty label"),
        (b"text,label\nhi,NaN\n", "line 2 of .* has NaN as its label"),
        (b"text,label\nhi\n", "line 2 of .* has 1 columns, and needs 2"),
        (b"text,label\nh\xff,a\n", "line 2 of .* is not UTF-8 at byte 12"),
        (b'text,label\n"hi" x,a\n', "line 2 of .* is no CSV"),
        (b'text,label\n"hi', "line 2 of .* is no CSV"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused_with_its_place(
    tmp_path: Path, content: bytes, named: str
) -> None:
    (tmp_path / "q.csv").write_bytes(content)
    with pytest.raises(DataError, match=named):
        read_texts(tmp_path / "q.csv")


def test_a_missing_file_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_texts(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"cannot be read .*; give a CSV of one text and its label"):
        read_texts(tmp_path)
    path = questions.write_csv(tmp_path / "q.csv", [("hi", "a")], ("text", "label"))
    with pytest.raises(DataError, match=r"label_column is 'topic'.*'text', 'label'"):
        read_texts(path, label_column="topic")
    with pytest.raises(DataError, match="both be column 2"):
        read_texts(path, text_column="label")


def test_texts_become_the_ids_that_serving_would_make_and_are_cut(tmp_path: Path) -> None:
    path = questions.write_csv(tmp_path / "q.csv", [*questions.rows()])
    cut = tokenizer([text for text, _ in questions.rows()], most=4)
    labelled = load_texts(path, cut)
    assert labelled.names[2] == "card missing please help"
    assert labelled.rows[2].tolist() == cut.encode(labelled.names[2]).ids.tolist()
    assert max(map(len, labelled.rows)) == 4


def test_the_digest_of_texts_is_of_the_texts_and_not_of_their_tokens(tmp_path: Path) -> None:
    path = questions.write_csv(tmp_path / "q.csv", [*questions.rows()])
    texts = read_texts(path)
    one = texts.encoded(tokenizer(["some words"]))
    assert one.digest == texts.encoded(tokenizer(list(texts.texts))).digest
    changed = questions.write_csv(tmp_path / "c.csv", [("Other", "lost_card"), *questions.rows()])
    assert read_texts(changed).encoded(tokenizer(["some words"])).digest != one.digest


def test_a_text_of_nothing_that_counts_is_refused(tmp_path: Path) -> None:
    path = questions.write_csv(tmp_path / "q.csv", [("hi", "a"), ("\u200b", "b")])
    with pytest.raises(DataError, match="cannot be used"):
        load_texts(path, tokenizer(["hi you"]))


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    "labels", [np.array([2, 2, 10, 10]), np.array(["2", "2", "10", "10"]), np.array([b"2"] * 4)]
)
def test_an_npz_gives_vectors_and_classes(tmp_path: Path, labels: Any) -> None:
    labelled = load_vectors(save(tmp_path / "v.npz", vectors=VECTORS, labels=labels))
    assert np.array_equal(np.asarray(labelled.rows), VECTORS)
    assert [labelled.class_names[label] for label in labelled.labels] == [
        label.decode() if isinstance(label, bytes) else str(label) for label in labels.tolist()
    ]


def test_another_vector_gives_another_digest(tmp_path: Path) -> None:
    labels = np.array([0, 0, 1, 1])
    one = load_vectors(save(tmp_path / "v.npz", vectors=VECTORS, labels=labels))
    again = load_vectors(save(tmp_path / "w.npz", vectors=VECTORS, labels=labels))
    other = load_vectors(save(tmp_path / "x.npz", vectors=VECTORS + 1, labels=labels))
    assert one.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"labels": [0, 1]}, "no array 'vectors'"),
        ({"vectors": VECTORS}, "no array 'labels'"),
        ({"vectors": VECTORS.astype(np.float64), "labels": [0, 0, 1, 1]}, "are float64"),
        ({"vectors": VECTORS[0], "labels": [0, 0, 1]}, r"have shape \(3,\)"),
        ({"vectors": VECTORS[:0], "labels": np.zeros(0, int)}, r"have shape \(0, 3\)"),
        ({"vectors": VECTORS, "labels": [0, 1]}, r"labels .* have shape \(2,\) for 4 vectors"),
        ({"vectors": VECTORS, "labels": [0.0, 0.0, 1.0, np.nan]}, "labels .* are float64"),
        ({"vectors": VECTORS, "labels": ["a", "a", "", "b"]}, "row 2 .* an empty label"),
        ({"vectors": VECTORS, "labels": ["a", "a", "b", "nan"]}, "row 3 .* NaN"),
        ({"vectors": VECTORS * np.float32(np.nan), "labels": [0, 0, 1, 1]}, "first is row 0"),
        ({"vectors": np.array([None] * 4), "labels": [0, 0, 1, 1]}, "npz of plain arrays"),
    ],
)
def test_an_npz_that_cannot_be_meant_is_refused(
    tmp_path: Path, arrays: dict[str, Any], named: str
) -> None:
    with pytest.raises(DataError, match=named):
        load_vectors(save(tmp_path / "v.npz", **arrays))


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_vectors(tmp_path / "none.npz")
    np.save(tmp_path / "plain.npy", VECTORS)
    whole = save(tmp_path / "v.npz", vectors=VECTORS, labels=[0, 0, 1, 1]).read_bytes()
    (tmp_path / "plain.npz").write_bytes((tmp_path / "plain.npy").read_bytes())
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_bytes(b"vectors")
    for name in ("plain.npz", "cut.npz", "text.npz"):
        with pytest.raises(DataError, match="cannot be read as an npz"):
            load_vectors(tmp_path / name)


def test_vectors_of_another_shape_than_the_twin_takes_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "v.npz", vectors=VECTORS, labels=[0, 0, 1, 1])
    assert len(load_vectors(path, TensorInput((3,)))) == 4
    with pytest.raises(DataError, match=r"shape \(3,\) each, the twin takes \(5,\)"):
        load_vectors(path, TensorInput((5,)))
