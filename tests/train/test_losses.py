"""Losses on points computed by hand, against plain float64 loops, and at the gradient's traps."""

from __future__ import annotations

import math

import pytest
import torch

from twinserve.distance import Metric
from twinserve.train import losses
from twinserve.train.heads import NORM_EPS, DistanceHead

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@DTYPES
def test_contrastive_is_as_computed_by_hand(dtype: torch.dtype) -> None:
    # Genuine at 0.5: 0.25. Impostor at 0.4 under margin 1: 0.36. Impostor at 1.5: nothing.
    distances = torch.tensor([0.5, 0.4, 1.5], dtype=dtype)
    same = torch.tensor([True, False, False])
    loss = losses.contrastive(distances, same, margin=1.0)
    assert loss.dtype is dtype
    assert loss.item() == pytest.approx((0.25 + 0.36 + 0.0) / 3, rel=1e-6)


@DTYPES
def test_triplet_is_as_computed_by_hand(dtype: torch.dtype) -> None:
    # 0.2 + 0.5 - 0.6 = 0.1; 0.2 + 0.1 - 0.9 < 0.
    loss = losses.triplet(
        torch.tensor([0.5, 0.1], dtype=dtype), torch.tensor([0.6, 0.9], dtype=dtype), margin=0.2
    )
    assert loss.dtype is dtype
    assert loss.item() == pytest.approx(0.05, rel=1e-5)


@DTYPES
def test_supervised_contrastive_is_as_computed_by_hand(dtype: torch.dtype) -> None:
    # Cosines: the first two are equal (1), the third is at a right angle to both (0) and alone.
    embeddings = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=dtype)
    loss = losses.supervised_contrastive(embeddings, torch.tensor([0, 0, 1]), temperature=0.5)
    expected = -math.log(math.exp(2.0) / (math.exp(2.0) + 1.0))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@DTYPES
def test_supervised_contrastive_equals_a_plain_loop(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(24, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (24,), generator=generator)
    temperature = 0.1
    directions = (embeddings / embeddings.norm(dim=1, keepdim=True)).tolist()
    terms = []
    for i, anchor in enumerate(directions):
        weight = [
            math.exp(sum(x * y for x, y in zip(anchor, other, strict=True)) / temperature)
            for other in directions
        ]
        others = sum(w for a, w in enumerate(weight) if a != i)
        positives = [p for p in range(24) if p != i and labels[p] == labels[i]]
        if positives:
            terms.append(-sum(math.log(weight[p] / others) for p in positives) / len(positives))
    loss = losses.supervised_contrastive(embeddings.to(dtype), labels, temperature)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=tolerance)


@pytest.mark.parametrize("metric", list(Metric))
def test_contrastive_and_triplet_equal_plain_loops(metric: Metric) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b, c = torch.randn(3, 10, 6, generator=generator, dtype=torch.float64)
    same = torch.rand(10, generator=generator) < 0.5

    def distance(x: list[float], y: list[float]) -> float:
        if metric is Metric.EUCLIDEAN:
            return math.dist(x, y)
        dot = sum(p * q for p, q in zip(x, y, strict=True))
        return 1.0 - dot / (math.hypot(*x) * math.hypot(*y))

    ab = [distance(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    ac = [distance(x, y) for x, y in zip(a.tolist(), c.tolist(), strict=True)]
    margin = 0.7
    contrastive = sum(
        d**2 if y else max(0.0, margin - d) ** 2 for d, y in zip(ab, same.tolist(), strict=True)
    )
    triplet = sum(max(0.0, margin + p - n) for p, n in zip(ab, ac, strict=True))
    head = DistanceHead(metric)
    assert losses.contrastive(head(a, b), same, margin).item() == pytest.approx(contrastive / 10)
    assert losses.triplet(head(a, b), head(a, c), margin).item() == pytest.approx(triplet / 10)


@pytest.mark.parametrize("metric", list(Metric))
def test_gradients_are_finite_where_embeddings_are_equal_or_zero(metric: Metric) -> None:
    embeddings = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    distances = DistanceHead(metric)(embeddings[[0, 2, 0]], embeddings[[1, 3, 2]])
    same = torch.tensor([True, False, False])
    loss = losses.contrastive(distances, same, 1.0) + losses.triplet(distances, distances, 0.1)
    loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.abs().max() <= 10.0 / NORM_EPS


def test_supervised_contrastive_has_finite_gradients_at_zero_and_equal_embeddings() -> None:
    embeddings = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    losses.supervised_contrastive(embeddings, torch.tensor([0, 0, 1, 1]), 0.1).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_batch_without_positives_costs_nothing_and_stays_on_the_graph(batch: int) -> None:
    embeddings = torch.randn(batch, 4, requires_grad=True)
    loss = losses.supervised_contrastive(embeddings, torch.arange(batch), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_no_pairs_and_no_triplets_cost_nothing_and_stay_on_the_graph() -> None:
    embeddings = torch.randn(2, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    distances = DistanceHead(Metric.EUCLIDEAN)(embeddings[none], embeddings[none])
    loss = losses.contrastive(distances, none.bool(), 1.0) + losses.triplet(
        distances, distances, 1.0
    )
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()
