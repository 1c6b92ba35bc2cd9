"""Ready embeddings of a call, taken out of their messages in one piece."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.server.services.codec import ready_rows
from twinserve.v1 import shared_pb2 as shared

SPACE = "space"


def ready(values: list[float], space_id: str = SPACE) -> shared.Input:
    return shared.Input(embedding=shared.Embedding(values=values, space_id=space_id))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dimension", [1, 31, 32, 384])  # lengths of one and of several bytes
def test_they_come_out_as_they_were_put_in(count: int, dimension: int) -> None:
    rows = np.random.default_rng(dimension).standard_normal((count, dimension)).astype(np.float32)
    found = ready_rows([ready(row.tolist()) for row in rows], dimension, SPACE)
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows)


def test_values_that_no_gallery_takes_come_out_too() -> None:
    found = ready_rows([ready([float("nan"), 0.0])], 2, SPACE)
    assert found is not None
    assert np.isnan(found[0, 0])


@pytest.mark.parametrize(
    "other",
    [
        ready([1.0, 2.0], "another"),
        ready([1.0, 2.0], ""),
        ready([1.0]),
        ready([1.0, 2.0, 3.0]),
        ready([]),
        shared.Input(text="a text"),
        shared.Input(),
        shared.Input(embedding=shared.Embedding(values=[1.0, 2.0], space_id=SPACE), prompt="p"),
    ],
)
def test_anything_else_is_left_to_who_says_what_is_wrong(other: shared.Input) -> None:
    assert ready_rows([ready([1.0, 2.0]), other], 2, SPACE) is None
