"""Judged pairs: read as they stand, each item once, and refused with the line that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import twins
from twinserve.errors import DataError
from twinserve.export.pairs import Pairs, read_pairs
from twinserve.manifest import ImageInput, InputContract, TensorInput
from twinserve.tokens import Tokenizer

PICTURE = ImageInput(4, 4, 1, "L")
VECTOR = TensorInput((3,))
W = twins.WORDS
GOOD = f"{W[0]},{W[1]},1\n{W[2]},{W[3]},0\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = twins.text_tokenizer()
    return Tokenizer(made, twins.text_contract(made))


@pytest.fixture
def read(tmp_path: Path, tokenizer: Tokenizer) -> Any:
    """Write a table and read it as pairs of texts."""

    def call(content: str | bytes, name: str = "pairs.csv", **settings: Any) -> Pairs:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        contract = twins.text_contract(twins.text_tokenizer())
        return read_pairs(path, contract, tokenizer, **settings)

    return call


def judgements(pairs: Pairs) -> list[tuple[str, str, bool]]:
    return [
        (pairs.names[one], pairs.names[other], bool(same))
        for one, other, same in zip(pairs.first, pairs.second, pairs.same, strict=True)
    ]


@pytest.mark.parametrize(
    "content",
    [
        "a,b,1\nb,c,0\n",
        "first,second,same\na,b,yes\nb,c,no\n",
        "\ufeffsame,second,first\r\nTrue,b,a\r\n\r\n0.0,c,b\r\n",
        '"a","b",YES\n"b","c", false\n',
        "a,b,1\nb,a,1\nb,c,0\nb,c,0\n",
        "a,b,1\na,a,1\nb,c,0\n",
    ],
)
def test_pairs_are_read_with_and_without_a_header(read: Any, content: str) -> None:
    pairs = read(content)
    assert judgements(pairs) == [("a", "b", True), ("b", "c", False)]
    assert pairs.names == ("a", "b", "c")
    assert pairs.subjects is None
    assert len(pairs) == 2


def test_tabs_split_a_tsv_and_commas_may_stand_in_quotes(read: Any) -> None:
    assert judgements(read("a, b\tc\t1\n", "pairs.tsv")) == [("a, b", "c", True)]
    assert judgements(read('"a, ""b""\nand c",d,0\n')) == [('a, "b"\nand c', "d", False)]


def test_a_score_counts_as_the_same_from_the_limit_on(read: Any) -> None:
    for content in ("a,b,4\nc,d,3.99\n", "first,second,score\na,b,4.5\nc,d,-1e3\n"):
        assert judgements(read(content, same_above=4.0)) == [("a", "b", True), ("c", "d", False)]


def test_a_pair_that_was_scored_twice_counts_by_the_mean(read: Any) -> None:
    content = "a,b,5\nc,d,5\nb,a,2\nd,c,4\n"
    assert judgements(read(content, same_above=4.0)) == [("a", "b", False), ("c", "d", True)]


def test_rows_are_what_serving_would_make_of_the_items(read: Any, tokenizer: Tokenizer) -> None:
    pairs = read(GOOD)
    for name, row in zip(pairs.names, pairs.rows, strict=True):
        np.testing.assert_array_equal(row, tokenizer.encode(name).ids)


def test_the_digest_tells_items_and_judgements_apart_and_not_the_form(read: Any) -> None:
    one = read(GOOD).digest
    assert read("first,second,same\n" + GOOD).digest == one
    assert read(GOOD.replace(",0", ",1")).digest != one
    assert read(GOOD.replace(W[0], W[5])).digest != one


def test_subjects_are_read_where_they_are_named(read: Any) -> None:
    pairs = read("a,b,1,ann,ann\nb,c,0,ann,bob\n")
    assert pairs.subjects.tolist() == [0, 0, 1]
    header = "first_subject,first,second,second_subject,same\n"
    assert read(header + "ann,a,b,ann,1\nann,b,c,bob,0\n").subjects.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("a,b,1\nc,d,maybe\n", r"line 2: same is 'maybe', which is neither 0 or 1 nor yes or no"),
        ("a,b,1\nc,d,4.5\n", r"line 2: same is '4.5'.*--same-above"),
        ("a,b,\n", r"neither a pair \(same is ''"),
        (
            "sentence1,sentence2,label\na,b,1\n",
            "line 1 .* nor a header; a header names its columns",
        ),
        ("a,b\n", "line 1 .* has 2 columns; without a header a pair has 3"),
        ("a,b,1,ann\n", "has 4 columns"),
        ("a,b,1\n\nc,d\n", "line 3: it has 2 columns, not 3"),
        (
            "first,second,same,colour\na,b,1,red\n",
            "line 1 .*column 'colour' is unknown; known ones",
        ),
        ("first,second\na,b\n", "column same .* is missing"),
        ("first,same\na,1\n", "column second is missing"),
        ("first,second,same,score\na,b,1,1\n", "only one of them"),
        ("first,second,same,same\na,b,1,1\n", "'same' stands there twice"),
        ("first,second,same,first_subject\na,b,1,x\n", "column second_subject is missing"),
        ("first,second,score\na,b,1\n", "--same-above"),
        ("a,b,1,ann,\n", "line 1: a subject is empty"),
        ("a,b,1\n ,b,0\n", "line 2: the text is blank"),
        ("a,b,1\nb,a,0\n", "line 1 and line 2 of .* judge one pair both ways, 'a' and 'b'"),
        ("a,a,0\n", "line 1 of .* calls 'a' different from itself"),
        ("a,b,1,ann,bob\n", "line 1 .*the same and names the subjects 'ann' and 'bob'"),
        ("a,b,1,ann,ann\na,c,0,bob,cid\n", "line 2 .* gives 'a' the subject 'bob'"),
        ('a,"b,1\n', "line 1 of .* is no CSV"),
        ("", "holds no pairs"),
        ("first,second,same\n", "holds no pairs"),
        (b"a,b,1\n\xff,c,0\n", "line 2 of .* is not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_line(
    read: Any, content: str | bytes, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        read(content)


@pytest.mark.parametrize("score", ["good", "nan", "inf", ""])
def test_a_score_that_is_no_number_is_refused(read: Any, score: str) -> None:
    with pytest.raises(DataError, match=r"line 2: the score is .*, which is no number"):
        read(f"a,b,1\nc,d,{score}\n", same_above=1.0)


def test_of_many_bad_rows_the_first_are_named_and_all_are_counted(read: Any) -> None:
    content = "a,b,1\n" + "c,d,x\n" * 5
    with pytest.raises(DataError, match=r"5 of 6 rows .* line 2: .* line 4: .*; and 2 more$"):
        read(content)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    contract = twins.text_contract(twins.text_tokenizer())
    with pytest.raises(DataError, match="does not exist"):
        read_pairs(tmp_path / "none.csv", contract, tokenizer)
    with pytest.raises(DataError, match="--data a folder"):
        read_pairs(tmp_path, contract, tokenizer)


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def test_pictures_are_named_from_the_tables_folder(tmp_path: Path) -> None:
    for value in (10, 20, 30):
        picture(tmp_path / f"set/{value}.png", value)
    table = tmp_path / "pairs.csv"
    table.write_text("set/10.png,set/20.png,1\nset/30.png,set/10.png,0\n")
    pairs = read_pairs(table, PICTURE)
    assert [int(row[0, 0, 0]) for row in pairs.rows] == [10, 20, 30]
    assert pairs.rows[0].shape == (4, 4, 1)


def test_pictures_that_cannot_be_read_are_told_with_their_lines(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    table = tmp_path / "pairs.csv"
    table.write_text("a.png,where is my card?,1\nbroken.png,a.png,0\n")
    with pytest.raises(DataError, match="2 of 3 items") as caught:
        read_pairs(table, PICTURE)
    assert "line 1: 'where is my card?' cannot be read" in caught.value.message
    assert "this twin takes pictures" in caught.value.message
    assert "line 2: the image cannot be decoded" in caught.value.message


def arrays(tmp_path: Path, **changed: Any) -> Path:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    given = {"first": rows, "second": rows[[1, 2, 0, 0]], "same": np.array([1, 0, 0, 1])}
    given = {name: array for name, array in {**given, **changed}.items() if array is not None}
    np.savez(tmp_path / "pairs.npz", **given)
    return tmp_path / "pairs.npz"


def test_vectors_come_as_arrays_and_equal_ones_are_one_item(tmp_path: Path) -> None:
    pairs = read_pairs(arrays(tmp_path), VECTOR)
    assert pairs.names == ("first[0]", "first[1]", "first[2]", "first[3]")
    assert pairs.first.tolist() == [0, 1, 2, 3]
    assert pairs.second.tolist() == [1, 2, 0, 0]
    assert pairs.same.tolist() == [True, False, False, True]


def test_vectors_may_be_scored_and_have_subjects(tmp_path: Path) -> None:
    path = arrays(
        tmp_path,
        same=None,
        score=np.array([5.0, 1.0, 1.0, 4.0]),
        first_subject=np.array([7, 7, 8, 7]),
        second_subject=np.array([7, 8, 7, 7]),
    )
    pairs = read_pairs(path, VECTOR, same_above=4.0)
    assert pairs.same.tolist() == [True, False, False, True]
    assert pairs.subjects is not None
    assert pairs.subjects.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"first": np.zeros((4, 2), np.float32)}, r"first in .* is float32 \[4, 2\]; .*\[4, 3\]"),
        ({"second": np.zeros((4, 3))}, "second in .* is float64"),
        ({"second": np.zeros((3, 3), np.float32)}, "second in .* has 3 rows, and first has 4"),
        ({"first": np.full((4, 3), np.nan, np.float32)}, r"first\[0\] in .* NaN or an infinity"),
        ({"same": np.array([[1], [0], [0], [1]])}, "not one value per pair"),
        ({"same": np.array([1, 0, 2, 0])}, "row 2: same is '2'"),
        ({"same": None}, "column same .* is missing"),
        ({"extra": np.zeros(4)}, "column 'extra' is unknown"),
        ({"same": None, "score": np.zeros(4)}, "--same-above"),
        ({"same": np.array([None, 1, 0, 1])}, "cannot be read as an npz"),
        ({"same": np.array(1)}, "same in .* has 1 rows"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(
    tmp_path: Path, changed: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        read_pairs(arrays(tmp_path, **changed), VECTOR)


@pytest.mark.parametrize(
    ("contract", "name", "complaint"),
    [
        (VECTOR, "pairs.csv", "this twin takes vectors"),
        (PICTURE, "pairs.npz", "this twin takes pictures"),
        (twins.text_contract("{}"), "pairs.npz", "this twin takes texts"),
        (VECTOR, "none.npz", "does not exist"),
    ],
)
def test_pairs_of_another_modality_are_refused(
    tmp_path: Path, contract: InputContract, name: str, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        read_pairs(tmp_path / name, contract)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "pairs.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match="cannot be read as an npz"):
        read_pairs(tmp_path / "pairs.npz", VECTOR)
