"""Losses on points computed by hand, against plain float64 loops, and at the gradient's traps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from twinserve.distance import Metric
from twinserve.train import losses, mining
from twinserve.train.heads import NORM_EPS, ConcatenationHead, CosineHead, DistanceHead

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


@DTYPES
def test_contrastive_takes_scores_between_as_shares_of_both_terms(dtype: torch.dtype) -> None:
    # y = 0.25 at 0.4 under margin 1: 0.25 * 0.16 + 0.75 * 0.36.
    loss = losses.contrastive(
        torch.tensor([0.4], dtype=dtype), torch.tensor([0.25], dtype=dtype), margin=1.0
    )
    assert loss.item() == pytest.approx(0.31, rel=1e-6)


@DTYPES
def test_cosine_mse_is_as_computed_by_hand(dtype: torch.dtype) -> None:
    # Scores of 0, 2.5 and 5 of 5, as [0, 1]. Different at -1: targets -1, 0, 1; at 0: 0, 0.5, 1.
    same = torch.tensor([0.0, 0.5, 1.0], dtype=dtype)
    cosines = torch.tensor([0.1, 0.1, 0.1], dtype=dtype)
    opposite, right_angle = losses.cosine_targets(same, -1.0), losses.cosine_targets(same, 0.0)
    assert opposite.tolist() == [-1.0, 0.0, 1.0]
    assert right_angle.tolist() == [0.0, 0.5, 1.0]
    loss = losses.mean_squared(cosines, opposite)
    assert loss.dtype is dtype
    assert loss.item() == pytest.approx((1.21 + 0.01 + 0.81) / 3, rel=1e-6)
    loss = losses.mean_squared(cosines, right_angle)
    assert loss.item() == pytest.approx((0.01 + 0.16 + 0.81) / 3, rel=1e-6)


@DTYPES
def test_cross_entropy_is_as_computed_by_hand(dtype: torch.dtype) -> None:
    # Logits 0 and ln 3: "same" has a share of 3/4.
    logits = torch.tensor([[0.0, math.log(3.0)]] * 3, dtype=dtype)
    loss = losses.cross_entropy(logits, torch.tensor([1.0, 0.0, 0.5], dtype=dtype))
    terms = (-math.log(0.75), -math.log(0.25), -0.5 * math.log(0.75) - 0.5 * math.log(0.25))
    assert loss.dtype is dtype
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-6)


@DTYPES
def test_multiple_negatives_is_as_computed_by_hand(dtype: torch.dtype) -> None:
    anchors = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=dtype)
    # Cosines 1, 0, -1 of the first anchor; 0, 1, 0 of the second.
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-4.0, 0.0]], dtype=dtype)
    loss = losses.multiple_negatives(anchors, candidates, temperature=0.5)
    e = math.exp
    first = -math.log(e(2) / (e(2) + e(0) + e(-2)))
    second = -math.log(e(2) / (e(0) + e(2) + e(0)))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    excluded = torch.tensor([[False, True, False], [True, False, False]])
    loss = losses.multiple_negatives(anchors, candidates, 0.5, excluded)
    first, second = -math.log(e(2) / (e(2) + e(-2))), -math.log(e(2) / (e(2) + e(0)))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


@DTYPES
def test_batch_all_averages_over_the_triplets_that_cost_something(dtype: torch.dtype) -> None:
    # On a line: class 0 at 0 and 2, class 1 at 3; margin 1.5.
    # Anchor 0: 1.5 + 2 - 3 = 0.5. Anchor 2: 1.5 + 2 - 1 = 2.5. Anchor 3 has no positive.
    places = torch.tensor([[0.0], [2.0], [3.0]], dtype=dtype)
    masks = mining.masks(torch.tensor([0, 0, 1]))
    distances = DistanceHead(Metric.EUCLIDEAN).matrix(places)
    loss, active = losses.batch_all(distances, *masks, margin=1.5)
    assert loss.dtype is dtype
    assert (loss.item(), active.item()) == pytest.approx((1.5, 1.0))
    # Under margin 0.5 the first costs nothing, and is left out of the average.
    loss, active = losses.batch_all(distances, *masks, margin=0.5)
    assert (loss.item(), active.item()) == pytest.approx((1.5, 0.5))


@pytest.mark.parametrize("metric", list(Metric))
def test_batch_all_equals_a_plain_loop(metric: Metric) -> None:
    generator = torch.Generator().manual_seed(6)
    embeddings = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 6, (20,), generator=generator)
    head = DistanceHead(metric)
    costs = [
        max(
            0.0,
            (0.4 + head(embeddings[a], embeddings[p]) - head(embeddings[a], embeddings[n])).item(),
        )
        for a in range(20)
        for p in range(20)
        for n in range(20)
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]
    loss, active = losses.batch_all(head.matrix(embeddings), *mining.masks(labels), margin=0.4)
    costly = [cost for cost in costs if cost > 0]
    assert loss.item() == pytest.approx(sum(costly) / len(costly))
    assert active.item() == pytest.approx(len(costly) / len(costs))


@DTYPES
def test_where_torch_has_the_formula_it_gives_the_same(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    a, b, c = torch.randn(3, 30, 8, generator=generator, dtype=dtype)
    same = torch.rand(30, generator=generator, dtype=dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-12}
    logits = ConcatenationHead(8).to(dtype)(a, b)
    torch.testing.assert_close(
        losses.cross_entropy(logits, same),
        F.cross_entropy(logits, torch.stack([1 - same, same], dim=1)),
        **(tolerance if dtype is torch.float32 else {"rtol": 1e-12, "atol": 1e-12}),
    )
    torch.testing.assert_close(
        losses.mean_squared(CosineHead()(a, b), 2 * same - 1),
        F.mse_loss(F.cosine_similarity(a, b), 2 * same - 1),
        rtol=1e-5,
        atol=1e-6,
    )
    head = DistanceHead(Metric.EUCLIDEAN)
    torch.testing.assert_close(
        losses.triplet(head(a, b), head(a, c), 0.3),
        F.triplet_margin_with_distance_loss(
            a, b, c, distance_function=lambda x, y: torch.linalg.norm(x - y, dim=1), margin=0.3
        ),
    )
    # torch's plain TripletMarginLoss adds 1e-6 to each coordinate's difference: near, not the same.
    near = F.triplet_margin_loss(a, b, c, margin=0.3)
    assert losses.triplet(head(a, b), head(a, c), 0.3).item() == pytest.approx(
        near.item(), rel=1e-4
    )
    excluded = torch.zeros(30, 30, dtype=torch.bool)
    torch.testing.assert_close(
        losses.multiple_negatives(a, b, 0.1, excluded),
        F.cross_entropy(F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.1, torch.arange(30)),
    )


def test_where_torch_has_another_formula_the_difference_is_as_documented() -> None:
    # CosineEmbeddingLoss: 1 - cos for genuine, max(0, cos) for impostors; no squares.
    first, second = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.6, 0.8], [-0.6, 0.8]])
    y = torch.tensor([1.0, -1.0])
    cosines = CosineHead()(first, second)
    assert F.cosine_embedding_loss(first, second, y).item() == pytest.approx((0.4 + 0.0) / 2)
    assert losses.mean_squared(cosines, y).item() == pytest.approx((0.16 + 0.16) / 2)
    # HingeEmbeddingLoss is contrastive without squares.
    distances = torch.tensor([0.5, 0.4])
    assert F.hinge_embedding_loss(distances, y).item() == pytest.approx((0.5 + 0.6) / 2)
    same = torch.tensor([True, False])
    assert losses.contrastive(distances, same, 1.0).item() == pytest.approx((0.25 + 0.36) / 2)


def test_facenets_margin_is_twice_that_under_cosine() -> None:
    """FaceNet squares the distances of unit vectors: 2 (1 - cos)."""
    generator = torch.Generator().manual_seed(8)
    a, p, n = F.normalize(torch.randn(3, 40, 6, generator=generator, dtype=torch.float64), dim=2)
    facenet = ((a - p).square().sum(1) - (a - n).square().sum(1) + 0.2).clamp(min=0).mean()
    head = DistanceHead(Metric.COSINE)
    ours = losses.triplet(head(a, p), head(a, n), margin=0.1)
    assert 2 * ours.item() == pytest.approx(facenet.item(), rel=1e-12)


def test_losses_of_all_equal_or_zero_embeddings_have_finite_gradients() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    for rows in (torch.zeros(4, 3), torch.full((4, 3), 0.3)):
        for metric in Metric:
            embeddings = rows.clone().requires_grad_()
            distances = DistanceHead(metric).matrix(embeddings)
            loss, active = losses.batch_all(distances, *mining.masks(labels), margin=0.2)
            loss.backward()
            assert loss.item() == pytest.approx(0.2)
            assert active.item() == 1.0
            assert embeddings.grad is not None
            assert embeddings.grad.isfinite().all()
        embeddings = rows.clone().requires_grad_()
        loss = losses.multiple_negatives(embeddings[:2], embeddings[2:], 0.05)
        same = torch.tensor([1.0, 0.0])
        loss = loss + losses.mean_squared(CosineHead()(embeddings[:2], embeddings[2:]), same)
        loss = loss + losses.cross_entropy(
            ConcatenationHead(3)(embeddings[:2], embeddings[2:]), same
        )
        loss.backward()
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("labels", [[], [0], [0, 1, 2], [0, 0, 0]])
def test_no_valid_triplet_pair_or_anchor_costs_nothing_and_stays_on_the_graph(
    labels: list[int],
) -> None:
    embeddings = torch.randn(len(labels), 4, requires_grad=True)
    for metric in Metric:
        distances = DistanceHead(metric).matrix(embeddings)
        masks = mining.masks(torch.tensor(labels, dtype=torch.int64))
        loss, active = losses.batch_all(distances, *masks, margin=0.2)
        loss.backward(retain_graph=True)
        assert (loss.item(), active.item()) == (0.0, 0.0)
    none = embeddings[:0]
    empty = torch.zeros(0)
    loss = (
        losses.multiple_negatives(none, none, 0.1)
        + losses.multiple_negatives(none, embeddings, 0.1)
        + losses.mean_squared(CosineHead()(none, none), empty)
        + losses.cross_entropy(ConcatenationHead(4)(none, none), empty)
    )
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()
