"""Augmentation turns and moves pictures, and leaves them alone when nothing is asked."""

from __future__ import annotations

import torch

from twinserve.train.augment import augment
from twinserve.train.config import TrainConfig

GENERATOR = torch.Generator().manual_seed(0)


def picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 28, 28, 1), generator=generator, dtype=torch.uint8)


def test_without_limits_a_quarter_turn_is_exact() -> None:
    pixels, turns = picture(), torch.arange(4)
    moved = augment(pixels, turns, TrainConfig(), GENERATOR)
    for index in range(4):
        expected = torch.rot90(pixels[index], int(turns[index]), dims=(0, 1)).int()
        assert (moved[index].int() - expected).abs().max() <= 1


def test_paper_comes_in_from_outside_where_ink_is_inverted() -> None:
    black = torch.zeros(8, 28, 28, 1, dtype=torch.uint8)
    config = TrainConfig(ink_inverted=True, shift=0.5)
    moved = augment(black, torch.zeros(8, dtype=torch.int64), config, GENERATOR)
    assert moved.max() == 255
    bordered = augment(black, torch.zeros(8, dtype=torch.int64), TrainConfig(shift=0.5), GENERATOR)
    assert bordered.max() == 0


def test_equal_seeds_give_equal_pictures_and_others_do_not() -> None:
    config = TrainConfig(rotate_degrees=10, scale=0.2, shear=0.2, shift=0.1)
    turns = torch.zeros(4, dtype=torch.int64)
    first, again, other = (
        augment(picture(), turns, config, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (4, 28, 28, 1)
    assert first.dtype is torch.uint8
