"""The objective joins head, miner and loss as the config says, and its figures are right."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from twinserve.errors import ConfigError
from twinserve.train import losses, mining
from twinserve.train.config import LOSSES, TrainConfig
from twinserve.train.heads import ConcatenationHead, CosineHead
from twinserve.train.objective import Objective
from twinserve.train.pairs import LinkBatch

OF_PAIRS = ("contrastive", "cosine_mse", "concatenation", "multiple_negatives")
# On a line, Euclidean: class 0 at 0, 1, 5; class 1 at 2, 9.
PLACES = torch.tensor([[0.0], [1.0], [5.0], [2.0], [9.0]])
LABELS = torch.tensor([0, 0, 0, 1, 1])
LINE = TrainConfig(loss="triplet", metric="euclidean", dimension=1, margin=3.5)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def drawn(count: int, dimension: int = 6) -> torch.Tensor:
    return torch.randn(count, dimension, generator=seeded(), dtype=torch.float64)


def every(dimension: int = 6) -> list[TrainConfig]:
    return [
        TrainConfig(loss=loss, mining=miner, dimension=dimension)
        for loss, miners in LOSSES.items()
        for miner in miners
    ]


def test_figures_are_as_computed_by_hand() -> None:
    objective = Objective(dataclasses.replace(LINE, mining="batch_hard"))
    loss, figures = objective(PLACES, LABELS, seeded())
    # 3.5 + (5, 4, 5, 7, 7) - (2, 1, 3, 1, 4), all above 0.
    assert loss.item() == pytest.approx((6.5 + 6.5 + 5.5 + 9.5 + 6.5) / 5)
    assert figures.loss == loss.item()
    assert figures.active == 1.0
    assert figures.genuine == pytest.approx((1 + 5 + 4 + 7) / 4)
    assert figures.impostor == pytest.approx((2 + 9 + 1 + 8 + 3 + 4) / 6)


def test_semi_hard_and_batch_all_count_what_costs() -> None:
    # 3.5 + d(a, p) - d(a, n), for each (a, p) over both negatives, by hand:
    # from 0: 1 -> 2.5, -4.5; 5 -> 6.5, -0.5.  from 1: 1 -> 3.5, -3.5; 4 -> 6.5, -0.5.
    # from 5: 5 -> 5.5, 4.5; 4 -> 4.5, 3.5.    from 2: 7 -> 8.5, 9.5, 7.5.  from 9: 1.5, 2.5, 6.5.
    costs = [2.5, 6.5, 3.5, 6.5, 5.5, 4.5, 4.5, 3.5, 8.5, 9.5, 7.5, 1.5, 2.5, 6.5]
    loss, figures = Objective(dataclasses.replace(LINE, mining="batch_all"))(
        PLACES, LABELS, seeded()
    )
    assert loss.item() == pytest.approx(sum(costs) / len(costs))
    assert figures.active == pytest.approx(14 / 18)
    # Semi-hard: 0: 2 beyond 1, 9 beyond 5. 1: 8 beyond 1 (d = 1 is not), 8 beyond 4. 5: none beyond
    # 5, the farthest is at 4; 4: not beyond. 2: none beyond 7. 9: 8 and 9 beyond 7: the nearer.
    loss, figures = Objective(dataclasses.replace(LINE, mining="semi_hard"))(
        PLACES, LABELS, seeded()
    )
    costs = [2.5, 0.0, 0.0, 0.0, 4.5, 3.5, 7.5, 2.5]
    assert loss.item() == pytest.approx(sum(costs) / len(costs))
    assert figures.active == pytest.approx(5 / 8)


def test_the_curriculum_goes_from_miner_to_miner() -> None:
    embeddings, labels = drawn(24), torch.arange(6).repeat_interleave(4)
    turns = Objective(TrainConfig(loss="triplet", mining="random,semi_hard,batch_hard,batch_all"))
    for index, miner in enumerate(("random", "semi_hard", "batch_hard", "batch_all")):
        alone = Objective(TrainConfig(loss="triplet", mining=miner))
        for progress in (index / 4, index / 4 + 0.24):
            one, _ = turns(embeddings, labels, seeded(), progress)
            assert one.item() == alone(embeddings, labels, seeded())[0].item()


@pytest.mark.parametrize("config", every(), ids=lambda c: f"{c.loss}-{c.mining}")
def test_every_loss_falls_along_its_gradient_and_trains_all_its_weights(
    config: TrainConfig,
) -> None:
    torch.manual_seed(0)
    objective = Objective(config).double()
    labels = torch.arange(6).repeat_interleave(4)
    embeddings = drawn(24).requires_grad_()
    before, _ = objective(embeddings, labels, seeded())
    weights = [embeddings, *objective.parameters()]
    steps = torch.autograd.grad(before, weights)
    assert all(step.isfinite().all() and step.any() for step in steps)
    with torch.no_grad():
        for weight, step in zip(weights, steps, strict=True):
            weight -= 1e-4 * step
    after, _ = objective(embeddings, labels, seeded())
    assert after.item() < before.item()


@pytest.mark.parametrize("config", every(), ids=lambda c: f"{c.loss}-{c.mining}")
@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [0, 0, 0]])
def test_a_batch_without_genuine_or_impostor_pairs_is_finite_and_goes_backward(
    config: TrainConfig, labels: list[int]
) -> None:
    embeddings = drawn(len(labels)).float().requires_grad_()
    loss, figures = Objective(config)(embeddings, torch.tensor(labels), seeded())
    loss.backward()
    assert math.isfinite(figures.loss)
    assert 0.0 <= figures.active <= 1.0
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert math.isnan(figures.genuine) == (labels != [0, 0, 0])
    assert math.isnan(figures.impostor) == (labels != [0, 1, 2])


@pytest.mark.parametrize("config", every(), ids=lambda c: f"{c.loss}-{c.mining}")
def test_a_batch_that_collapsed_has_finite_gradients(config: TrainConfig) -> None:
    labels = torch.arange(3).repeat_interleave(2)
    for rows in (torch.zeros(6, 6), torch.full((6, 6), 0.2)):
        embeddings = rows.clone().requires_grad_()
        loss, _ = Objective(config)(embeddings, labels, seeded())
        loss.backward()
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()


def test_half_precision_is_measured_in_float32() -> None:
    embeddings, labels = drawn(8), torch.arange(4).repeat_interleave(2)
    loss, _ = Objective(TrainConfig())(embeddings.bfloat16(), labels, seeded())
    assert loss.dtype is torch.float32


@pytest.mark.parametrize("loss", ["contrastive", "cosine_mse", "concatenation"])
def test_labelled_pairs_cost_what_their_formula_says(loss: str) -> None:
    first, second = drawn(20), drawn(20).flip(0)
    same = torch.rand(20, generator=seeded(), dtype=torch.float64)
    torch.manual_seed(0)
    objective = Objective(
        TrainConfig(loss=loss, dimension=6, different_cosine=0.0, metric="euclidean")
    ).double()
    found, figures = objective.of_pairs(first, second, same)
    distances = torch.linalg.norm(first - second, dim=1)
    if loss == "contrastive":
        expected = losses.contrastive(distances, same, 0.5)
    elif loss == "cosine_mse":
        assert isinstance(objective.head, CosineHead)
        expected = (torch.cosine_similarity(first, second) - same).square().mean()
    else:
        assert isinstance(objective.head, ConcatenationHead)
        expected = losses.cross_entropy(objective.head(first, second), same)
    assert found.item() == pytest.approx(expected.item())
    assert figures.genuine == pytest.approx(distances[same >= 0.5].mean().item())
    assert figures.impostor == pytest.approx(distances[same < 0.5].mean().item())


def test_active_pairs_are_those_on_the_wrong_side() -> None:
    # Cosines 1, 0.8 and -1 with targets 1, -1 and -1: the second is on the wrong side.
    first = torch.tensor([[1.0, 0.0]] * 3)
    second = torch.tensor([[2.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])
    same = torch.tensor([True, False, False])
    objective = Objective(TrainConfig(loss="cosine_mse", dimension=2))
    assert objective.of_pairs(first, second, same)[1].active == pytest.approx(1 / 3)
    # Logits from |u - v| alone: "same" below a difference of 1 in the first coordinate.
    objective = Objective(TrainConfig(loss="concatenation", dimension=2))
    assert isinstance(objective.head, ConcatenationHead)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.zero_()
        objective.head.linear.weight[0, 4] = 1.0
        objective.head.linear.bias[1] = 0.9
    # Differences 1, 0.2 and 2: a genuine pair called different, an impostor called the same.
    assert objective.of_pairs(first, second, same)[1].active == pytest.approx(2 / 3)
    objective = Objective(TrainConfig(loss="contrastive", dimension=2, margin=0.5))
    # Distances 0, 0.2 and 2: the second costs.
    assert objective.of_pairs(first, second, same)[1].active == pytest.approx(1 / 3)


def test_pairs_of_a_batch_are_trained_as_the_same_pairs_from_a_file() -> None:
    embeddings, labels = drawn(24), torch.arange(6).repeat_interleave(4)
    for loss in ("contrastive", "cosine_mse", "concatenation"):
        torch.manual_seed(0)
        objective = Objective(TrainConfig(loss=loss, dimension=6)).double()
        pairs = mining.random_pairs(labels, seeded())
        drawn_here, _ = objective(embeddings, labels, seeded())
        given, _ = objective.of_pairs(embeddings[pairs.first], embeddings[pairs.second], pairs.same)
        assert drawn_here.item() == given.item()


def test_multiple_negatives_takes_no_candidate_of_the_anchors_class_for_a_negative() -> None:
    # Two items a class, all of a class equal, classes at right angles: nothing is confused.
    embeddings = torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=0)
    labels = torch.arange(3).repeat_interleave(4)
    objective = Objective(TrainConfig(loss="multiple_negatives", temperature=0.5))
    loss, figures = objective(embeddings, labels, seeded())
    # Own at a cosine of 1, and the eight of the other classes at 0.
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 8)))
    assert figures.active == 0.0


def test_multiple_negatives_takes_impostor_pairs_for_further_negatives() -> None:
    first, second = drawn(6), drawn(6).flip(0)
    same = torch.tensor([1.0, 0.0, 0.8, 0.2, 1.0, 0.0])
    objective = Objective(TrainConfig(loss="multiple_negatives", temperature=0.1))
    loss, figures = objective.of_pairs(first, second, same)
    order = [0, 2, 4, 1, 3, 5]
    expected = losses.multiple_negatives(first[[0, 2, 4]], second[order], 0.1)
    assert loss.item() == pytest.approx(expected.item())
    assert 0.0 <= figures.active <= 1.0


def test_multiple_negatives_takes_no_repeated_item_for_a_negative() -> None:
    # Unit vectors by their angle; pairs by item: (0, 1), (2, 1), (0, 3), (4, 0), (2, 4) belong
    # together, (4, 1) does not. Temperature 1, so a candidate weighs exp(cos).
    angles = torch.tensor([0.0, 40.0, 90.0, 60.0, 200.0], dtype=torch.float64).deg2rad()
    items = torch.stack([angles.cos(), angles.sin()], dim=1)
    members = np.array([[0, 1], [2, 1], [4, 1], [0, 3], [4, 0], [2, 4]])
    batch = LinkBatch(members, np.array([1, 1, 0, 1, 1, 1], dtype=np.float32))
    objective = Objective(TrainConfig(loss="multiple_negatives", temperature=1.0))
    loss, figures = objective.of_batch(batch, items[batch.items.tolist()], seeded())

    def weight(one: int, other: int) -> float:
        return math.exp(torch.cos(angles[one] - angles[other]).item())

    # Anchor and own candidate, and which of the candidates 1, 1, 3, 0, 4 and (judged different) 1
    # are left as its negatives: of 0 none (1, 3 and 4 are its partners, 0 is itself); of 2 the
    # items 3 and 0; of 4 all but its own and itself, the 1 of genuine pairs among them.
    expected = [
        (weight(0, 1), []),
        (weight(2, 1), [weight(2, 3), weight(2, 0)]),
        (weight(0, 3), []),
        (weight(4, 0), [weight(4, 1), weight(4, 1), weight(4, 3), weight(4, 1)]),
        (weight(2, 4), [weight(2, 3), weight(2, 0)]),
    ]
    costs = [-math.log(own / (own + sum(others))) for own, others in expected]
    assert loss.item() == pytest.approx(sum(costs) / 5)
    # 2 is nearer to 3 (30 degrees) than to its own 1 (50) and 4 (110), and 4 to 3 (140) than to 0
    # (160).
    assert figures.active == pytest.approx(3 / 5)


def test_multiple_negatives_of_triplets_heed_repeated_items_too() -> None:
    points = drawn(5)
    members = np.array([[0, 1, 2], [3, 1, 4]])
    batch = LinkBatch(members, None)
    objective = Objective(TrainConfig(loss="multiple_negatives", temperature=0.5, dimension=6))
    loss, _ = objective.of_batch(batch, points[batch.items.tolist()], seeded())
    unit = torch.nn.functional.normalize(points)
    cosines = (unit @ unit.T / 0.5).exp()
    costs = [
        -(cosines[anchor, 1] / (cosines[anchor, 1] + cosines[anchor, 2] + cosines[anchor, 4])).log()
        for anchor in (0, 3)
    ]
    assert loss.item() == pytest.approx(sum(costs).item() / 2)


def test_triplets_from_a_file_serve_the_triplet_loss_and_those_of_pairs() -> None:
    a, p, n = drawn(30).split(10)
    objective = Objective(LINE)
    loss, figures = objective.of_triplets(a, p, n)
    near, far = torch.linalg.norm(a - p, dim=1), torch.linalg.norm(a - n, dim=1)
    assert loss.item() == pytest.approx((3.5 + near - far).clamp(min=0).mean().item())
    assert figures.active == pytest.approx((3.5 + near - far > 0).double().mean().item())
    assert figures.genuine == pytest.approx(near.mean().item())
    for name in OF_PAIRS:
        objective = Objective(TrainConfig(loss=name, dimension=6)).double()
        same = torch.tensor([1.0] * 10 + [0.0] * 10)
        pairs, _ = objective.of_pairs(torch.cat([a, a]), torch.cat([p, n]), same)
        assert objective.of_triplets(a, p, n)[0].item() == pairs.item()


def test_a_loss_of_classes_refuses_pairs() -> None:
    for loss in sorted(set(LOSSES) - set(OF_PAIRS)):
        with pytest.raises(ConfigError, match=r"takes items with classes, not pairs; .*cosine_mse"):
            Objective(TrainConfig(loss=loss)).of_pairs(drawn(2), drawn(2), torch.ones(2))
