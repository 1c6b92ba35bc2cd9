"""Rows to what a run takes: names, padding and masks."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.feed import feed, input_names
from twinserve.manifest import ImageInput, InputContract, TensorInput, TextInput

IMAGES = ImageInput(2, 3, 1, "L")
TENSORS = TensorInput((4,))


def texts(*lengths: int) -> list[np.ndarray]:
    return [np.arange(1, length + 1, dtype=np.int64) for length in lengths]


def test_texts_are_padded_at_the_end_to_the_longest_of_their_batch() -> None:
    made = feed(texts(2, 4, 1), TextInput(8, pad_id=9))
    assert made["input_ids"].tolist() == [[1, 2, 9, 9], [1, 2, 3, 4], [1, 9, 9, 9]]
    assert made["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert {array.dtype for array in made.values()} == {np.dtype(np.int64)}


def test_a_text_alone_is_not_padded() -> None:
    made = feed(texts(3), TextInput(8, pad_id=9))
    assert made["input_ids"].tolist() == [[1, 2, 3]]
    assert made["attention_mask"].tolist() == [[1, 1, 1]]


def test_an_id_equal_to_the_padding_counts_where_the_text_holds_it() -> None:
    made = feed([np.array([0, 5, 0]), np.array([7])], TextInput(8, pad_id=0))
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    "names",
    [
        ("input_ids",),
        ("input_ids", "attention_mask"),
        ("input_ids", "token_type_ids", "attention_mask"),
    ],
)
def test_a_text_twin_gets_the_inputs_that_its_contract_lists_in_their_order(
    names: tuple[str, ...],
) -> None:
    contract = TextInput(8, inputs=names)
    made = feed(texts(2, 3), contract)
    assert tuple(made) == names == input_names(contract)
    assert {array.shape for array in made.values()} == {(2, 3)}
    if "token_type_ids" in names:
        assert not made["token_type_ids"].any()


@pytest.mark.parametrize(
    ("contract", "name", "row"),
    [
        (IMAGES, "image", np.full((2, 3, 1), 7, np.uint8)),
        (TENSORS, "tensor", np.ones(4, np.float32)),
    ],
)
def test_rows_of_one_shape_are_stacked_and_keep_their_type(
    contract: InputContract, name: str, row: np.ndarray
) -> None:
    (made,) = feed([row, row], contract).items()
    assert made[0] == name == input_names(contract)[0]
    assert made[1].dtype == row.dtype
    np.testing.assert_array_equal(made[1], np.stack([row, row]))


def test_a_batch_that_is_an_array_already_is_taken_as_it_is() -> None:
    batch = np.zeros((3, 4), np.float32)
    assert feed(batch, TENSORS)["tensor"] is batch
