"""Texts of every length are made of real ones, between what all texts begin and end with."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.export.text_twins import MAX_TOKENS, text_contract, text_rows
from twinserve.export.ladder import ladder


def test_rungs_reach_from_one_word_to_the_limit() -> None:
    rungs = ladder(text_rows(), text_contract())
    assert [len(rung[0]) for rung in rungs] == [3, 8, 16, 32, MAX_TOKENS]
    for rung in rungs:
        assert [len(row) for row in rung] == [len(rung[0])] * 3
        assert all(row.dtype == np.int64 for row in rung)


def test_every_row_begins_and_ends_like_real_texts_and_holds_their_words_between() -> None:
    rows = text_rows()
    real = {int(token) for row in rows for token in row[1:-1]}
    for rung in ladder(rows, text_contract()):
        for row in rung:
            assert (row[0], row[-1]) == (2, 3)  # [CLS] and [SEP]
            assert not {2, 3} & set(row[1:-1].tolist())
            assert set(row[1:-1].tolist()) <= real


def test_rows_of_a_rung_differ() -> None:
    longest = ladder(text_rows(), text_contract())[-1]
    assert len({row.tobytes() for row in longest}) == 3


def test_a_prompt_stays_in_front() -> None:
    prompt = np.array([2, 70, 71, 72])
    rows = [np.concatenate([prompt, row[1:]]) for row in text_rows()]
    for rung in ladder(rows, text_contract()):
        for row in rung:
            np.testing.assert_array_equal(row[:4], prompt)
    assert len(ladder(rows, text_contract())[0][0]) == 6


def test_a_single_text_is_repeated_up_to_the_limit() -> None:
    rungs = ladder([np.array([2, 9, 3])], text_contract())
    assert [len(rung[0]) for rung in rungs] == [1, 8, 16, 32, MAX_TOKENS]


def test_a_limit_that_leaves_no_room_for_words_still_has_a_rung() -> None:
    tight = dataclasses.replace(text_contract(), max_tokens=2)
    assert [len(rung[0]) for rung in ladder([np.array([2, 3])], tight)] == [1, 2]
    assert [len(rung[0]) for rung in ladder([np.array([2, 3])] * 2, tight)] == [2]
