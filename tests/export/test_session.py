"""The session: rows in, embeddings out in their order, and a sentence where the graph refuses."""

from __future__ import annotations

import numpy as np
import pytest

from tests.export.conftest import CONTRACT, random_inputs
from tests.export.text_twins import text_contract, text_rows
from twinserve.errors import GateFailed
from twinserve.export.session import GraphSession, embed_all
from twinserve.feed import Rows


def test_bytes_that_the_runtime_cannot_load_fail_the_gate() -> None:
    with pytest.raises(GateFailed, match="cannot load the graph"):
        GraphSession(b"\x08\x0a\x3a\x00", CONTRACT)


def test_a_batch_that_the_graph_refuses_is_named_with_its_length(text_model: bytes) -> None:
    session = GraphSession(text_model, text_contract())
    with pytest.raises(GateFailed, match="refuses a batch of 2 with 49 tokens"):
        session([np.full(49, 5), np.full(3, 5)])


class Counted(GraphSession):
    """Counts the tokens that are run, padding included."""

    tokens = 0

    def __call__(self, rows: Rows) -> np.ndarray:
        self.tokens += len(rows) * max(len(row) for row in rows)
        return super().__call__(rows)


def test_many_texts_are_run_by_length_and_come_back_in_their_order(text_model: bytes) -> None:
    rows = text_rows(60)
    session = Counted(text_model, text_contract())
    found = embed_all(session, rows, 10)
    sorted_cost = session.tokens
    one_by_one = np.concatenate([session([row]) for row in rows])
    np.testing.assert_allclose(found, one_by_one, rtol=0, atol=1e-5)
    least = sum(len(row) for row in rows)
    unsorted_cost = sum(10 * max(map(len, rows[i : i + 10])) for i in range(0, 60, 10))
    assert sorted_cost < 1.2 * least < unsorted_cost


def test_threads_are_the_callers_choice(model: bytes) -> None:
    inputs = random_inputs(5)
    one, any_number = GraphSession(model, CONTRACT, threads=1), GraphSession(model, CONTRACT)
    assert (one.threads, any_number.threads) == (1, 0)
    np.testing.assert_allclose(one(inputs), any_number(inputs), rtol=0, atol=1e-6)
