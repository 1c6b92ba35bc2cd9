"""Augmentation turns and moves pictures, and leaves them alone when nothing is asked."""

from __future__ import annotations

import torch

from twinserve.train.augment import ERASED_SIDES, augment
from twinserve.train.config import TrainConfig

SEEDED = torch.Generator().manual_seed(0)


def picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 28, 28, 1), generator=generator, dtype=torch.uint8)


def test_without_limits_a_quarter_turn_is_exact() -> None:
    pixels, turns = picture(), torch.arange(4)
    moved = augment(pixels, turns, TrainConfig(), SEEDED)
    for index in range(4):
        expected = torch.rot90(pixels[index], int(turns[index]), dims=(0, 1)).int()
        assert (moved[index].int() - expected).abs().max() <= 1


def test_paper_comes_in_from_outside_where_ink_is_inverted() -> None:
    black = torch.zeros(8, 28, 28, 1, dtype=torch.uint8)
    config = TrainConfig(ink_inverted=True, shift=0.5)
    moved = augment(black, torch.zeros(8, dtype=torch.int64), config, SEEDED)
    assert moved.max() == 255
    bordered = augment(black, torch.zeros(8, dtype=torch.int64), TrainConfig(shift=0.5), SEEDED)
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


def none_turned(pixels: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(pixels), dtype=torch.int64)


def test_a_mirror_swaps_left_and_right_of_as_many_pictures_as_asked() -> None:
    pixels = picture()
    for chance, expected in ((1.0, pixels.flip(2)), (0.0, pixels)):
        moved = augment(pixels, none_turned(pixels), TrainConfig(mirror=chance), SEEDED)
        assert (moved.int() - expected.int()).abs().max() <= 1
    many = picture()[:1].repeat(400, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    moved = augment(many, none_turned(many), TrainConfig(mirror=0.25), generator)
    mirrored = (moved.int() - many.flip(2).int()).abs().flatten(1).amax(dim=1) <= 1
    assert 0.2 < mirrored.float().mean() < 0.3


def test_a_turned_picture_is_mirrored_before_it_is_turned() -> None:
    pixels = picture()
    moved = augment(
        pixels, torch.ones(4, dtype=torch.int64), TrainConfig(mirror=1.0), torch.Generator()
    )
    expected = torch.rot90(pixels.flip(2), 1, dims=(1, 2))
    assert (moved.int() - expected.int()).abs().max() <= 1


def test_brightness_moves_a_picture_as_a_whole_and_contrast_leaves_its_mean() -> None:
    pixels = torch.randint(100, 156, (50, 16, 16, 3), generator=SEEDED, dtype=torch.uint8)
    means = pixels.float().mean(dim=(1, 2, 3))
    spreads = pixels.float().std(dim=(1, 2, 3))

    lit = augment(pixels, none_turned(pixels), TrainConfig(brightness=0.2), SEEDED).float()
    moved = lit.mean(dim=(1, 2, 3)) - means
    assert (lit.std(dim=(1, 2, 3)) / spreads - 1).abs().max() < 0.01
    assert 40 < moved.abs().max() <= 52
    assert moved.min() < -20
    assert moved.max() > 20

    flat = augment(pixels, none_turned(pixels), TrainConfig(contrast=0.5), SEEDED).float()
    factors = flat.std(dim=(1, 2, 3)) / spreads
    assert (flat.mean(dim=(1, 2, 3)) - means).abs().max() < 0.5
    assert 0.49 < factors.min() < 0.7
    assert 1.3 < factors.max() < 1.51


def test_an_erased_rectangle_has_the_mean_and_the_rest_stays() -> None:
    pixels = torch.randint(0, 256, (60, 20, 20, 1), generator=SEEDED, dtype=torch.uint8)
    erased = augment(pixels, none_turned(pixels), TrainConfig(erase=1.0), SEEDED)
    changed = (erased.int() - pixels.int()).abs().squeeze(-1) > 1
    for index in range(len(pixels)):
        rows, columns = changed[index].any(dim=1), changed[index].any(dim=0)
        assert rows.any(), "each picture is chosen"
        for line in (rows, columns):
            places = line.nonzero().flatten()
            length = int(places.max() - places.min()) + 1
            assert 0.5 * ERASED_SIDES[0] * 20 <= length <= ERASED_SIDES[1] * 20 + 1
        mean = pixels[index].float().mean()
        assert (erased[index].float().squeeze(-1)[changed[index]] - mean).abs().max() <= 0.51
    some = augment(pixels, none_turned(pixels), TrainConfig(erase=0.5), SEEDED)
    left = (some.int() - pixels.int()).abs().flatten(1).amax(dim=1) <= 1
    assert 15 < left.sum() < 45


def test_what_is_not_asked_for_draws_nothing_so_that_earlier_runs_repeat() -> None:
    plain, more = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    pixels = picture()
    augment(pixels, none_turned(pixels), TrainConfig(shift=0.1), plain)
    for _ in ("angle", "zoom", "shear", "shift", "shift"):
        torch.rand(4, generator=more)
    assert torch.equal(torch.rand(3, generator=plain), torch.rand(3, generator=more))
