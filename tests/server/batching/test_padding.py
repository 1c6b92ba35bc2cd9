"""Cutting texts into runs, against every way to cut them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from twinserve.server.batching.padding import RUN_TOKENS, cut, padded

NO_LIMIT = 1 << 20


def runs(lengths: list[int], max_tokens: int = NO_LIMIT) -> list[list[int]]:
    """Cut, checking that every row runs once and in order."""
    counts = cut(lengths, max_tokens)
    assert sum(counts) == len(lengths)
    assert min(counts) > 0
    ends = list(itertools.accumulate(counts))
    return [lengths[end - count : end] for end, count in zip(ends, counts, strict=True)]


def cost(made: list[list[int]]) -> int:
    return sum(RUN_TOKENS + padded(run) for run in made)


def least_cost(lengths: list[int]) -> int:
    """The least over all ways to cut, one by one."""
    places = range(1, len(lengths))
    return min(
        cost([lengths[a:b] for a, b in itertools.pairwise([0, *cuts, len(lengths)])])
        for count in range(len(lengths))
        for cuts in itertools.combinations(places, count)
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_costs_less(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Up to 32 tokens every length is told apart.
    lengths = sorted(generator.integers(1, 33, generator.integers(1, 11)).tolist())
    assert cost(runs(lengths)) == least_cost(lengths)


def test_one_long_text_runs_alone_and_the_short_ones_together() -> None:
    assert runs([8] * 63 + [256]) == [[8] * 63, [256]]


def test_texts_of_like_length_stay_together() -> None:
    assert len(runs(list(range(20, 28)))) == 1
    assert runs([12]) == [[12]]


@pytest.mark.parametrize("seed", range(5))
def test_no_run_is_above_the_limit_unless_its_one_text_is(seed: int) -> None:
    lengths = sorted(np.random.default_rng(seed).integers(1, 300, 200).tolist())
    for run in runs(lengths, 256):
        assert padded(run) <= 256 or len(run) == 1
    assert [300] in runs([*lengths, 300], 256)


def test_a_thousand_texts_of_all_lengths_are_cut_with_little_padding() -> None:
    lengths = sorted(np.random.default_rng(1).integers(4, 257, 1024).tolist())
    made = runs(lengths, 2048)
    assert sum(map(padded, made)) < 1.05 * sum(lengths)


@pytest.mark.parametrize("seed", range(5))
def test_no_run_is_above_the_limit_of_rows(seed: int) -> None:
    lengths = sorted(np.random.default_rng(seed).integers(1, 60, 200).tolist())
    counts = cut(lengths, 2048, max_rows=16)
    assert sum(counts) == 200
    assert max(counts) <= 16


def test_what_does_not_fit_one_run_is_cut_into_equal_parts() -> None:
    # Of 19 equal texts a rest of one would leave first, and as soon as more came again.
    assert cut([32] * 19, 192) == [4, 5, 5, 5]
    assert cut([32] * 12, 192) == [6, 6]


def test_a_dearer_run_carries_more_padding() -> None:
    lengths = [8] * 10 + [16] * 10
    assert cut(lengths, 2048, run_tokens=10) == [10, 10]
    assert cut(lengths, 2048, run_tokens=200) == [20]
