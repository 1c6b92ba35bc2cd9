"""Pooling sees the tokens that count, and no others."""

from __future__ import annotations

import pytest
import torch

from twinserve.train.pooling import MODES, pool

STATES = torch.tensor(
    [[[1.0, -8.0], [3.0, -2.0], [99.0, 99.0]], [[4.0, 4.0], [6.0, 8.0], [0.0, 0.0]]]
)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
EXPECTED = {
    "mean": [[2.0, -5.0], [10 / 3, 4.0]],
    "cls": [[1.0, -8.0], [4.0, 4.0]],
    "max": [[3.0, -2.0], [6.0, 8.0]],
    "lasttoken": [[3.0, -2.0], [0.0, 0.0]],
    "mean_sqrt_len": [[4 / 2**0.5, -10 / 2**0.5], [10 / 3**0.5, 12 / 3**0.5]],
    "weightedmean": [[7 / 3, -12 / 3], [16 / 6, 20 / 6]],
}


@pytest.mark.parametrize("mode", sorted(MODES))
def test_each_mode_gives_what_its_name_says(mode: str) -> None:
    torch.testing.assert_close(pool(STATES, MASK, [mode]), torch.tensor(EXPECTED[mode]))


@pytest.mark.parametrize("mode", sorted(MODES))
def test_what_stands_in_the_padding_is_not_seen(mode: str) -> None:
    alone = pool(STATES[:1, :2], MASK[:1, :2], [mode])
    torch.testing.assert_close(pool(STATES, MASK, [mode])[:1], alone)


def test_several_modes_stand_side_by_side_in_order() -> None:
    both = pool(STATES, MASK, ["max", "cls"])
    assert both[0].tolist() == [3.0, -2.0, 1.0, -8.0]
