"""Elastic bending moves places by no more than asked, smoothly, and by the seed alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch.nn import functional

from twinserve.train.augment import augment
from twinserve.train.config import TrainConfig
from twinserve.train.elastic import PLACES, displacements


def drawn(seed: int, limit: float = 0.1, side: int = 40) -> torch.Tensor:
    return displacements(64, side, side, limit, torch.Generator().manual_seed(seed))


def test_on_a_grid_of_its_own_size_displacements_are_the_draws_worked_out_by_hand() -> None:
    # As many pixels as places: nothing lies between, so the draws stand there themselves.
    found = displacements(2, PLACES, PLACES, 0.1, torch.Generator().manual_seed(3))
    uniform = torch.rand(2, 2, PLACES, PLACES, generator=torch.Generator().manual_seed(3))
    assert found.shape == (2, PLACES, PLACES, 2)
    for picture, axis, row, column in ((0, 0, 0, 0), (1, 1, 2, 4), (0, 1, 4, 3)):
        expected = (float(uniform[picture, axis, row, column]) * 2 - 1) * 0.2
        assert abs(float(found[picture, row, column, axis]) - expected) < 1e-6


def test_between_places_the_interpolation_is_torchs_own() -> None:
    uniform = torch.rand(64, 2, PLACES, PLACES, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        drawn(2).permute(0, 3, 1, 2),
        functional.interpolate((uniform * 2 - 1) * 0.2, (40, 40), mode="bicubic"),
    )


def test_displacements_stay_near_the_limit_and_have_no_direction() -> None:
    found = drawn(0)
    assert found.abs().max() < 0.2 * 1.5  # a side spans 2; cubic interpolation overshoots
    assert found.abs().max() > 0.15
    assert found.mean().abs() < 0.01


def test_neighbouring_pixels_move_alike() -> None:
    found = drawn(0)
    steps = (found[:, 1:] - found[:, :-1]).abs().max()
    assert steps < 0.1  # eight pixels from place to place, whose draws may be 0.4 apart


def test_equal_seeds_bend_equally() -> None:
    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


def test_without_bending_augmentation_is_what_it_was_and_with_it_another() -> None:
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8)
    )
    turns = torch.zeros(4, dtype=torch.int64)
    config = TrainConfig(shift=0.1, ink_inverted=True)

    def augmented(config: TrainConfig) -> torch.Tensor:
        return augment(pixels, turns, config, torch.Generator().manual_seed(1))

    bent = dataclasses.replace(config, elastic=0.05)
    assert torch.equal(augmented(config), augmented(config))
    assert not torch.equal(augmented(config), augmented(bent))
    barely = augmented(dataclasses.replace(config, elastic=1e-7))
    assert (barely.int() - augmented(config).int()).abs().max() <= 1  # the affine draws are kept
