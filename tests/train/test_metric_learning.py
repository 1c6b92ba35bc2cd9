"""Losses of pytorch-metric-learning by name; and theirs against ours where the formula is one."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from twinserve.distance import Metric
from twinserve.errors import ConfigError
from twinserve.train import losses, mining
from twinserve.train.config import TrainConfig
from twinserve.train.heads import DistanceHead, distance_matrix
from twinserve.train.metric_learning import load_loss
from twinserve.train.objective import Objective

LABELS = torch.arange(6).repeat_interleave(4)
PLAIN = {"type": "LpDistance", "normalize_embeddings": False}


def load(name: str, **parameters: Any) -> torch.nn.Module:
    return load_loss(name, parameters, classes=6, dimension=8)


def embeddings(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(24, 8, generator=generator, dtype=torch.float64)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ConfigError, match=r"pip install 'twinserve\[metric-learning\]'"):
        Objective(TrainConfig(loss="metric_learning:TripletMarginLoss"))


def test_a_loss_or_a_parameter_that_is_not_there_is_refused_with_what_is() -> None:
    pytest.importorskip("pytorch_metric_learning")
    with pytest.raises(ConfigError, match=r"loss names 'HingeLoss', .* it has .*TripletMarginLoss"):
        load("HingeLoss")
    with pytest.raises(
        ConfigError, match=r"TripletMarginLoss does not take .*it takes margin, swap"
    ):
        load("TripletMarginLoss", marginn=0.1)
    with pytest.raises(ConfigError, match=r"loss_parameters\.distance names 'Lp', .*LpDistance"):
        load("TripletMarginLoss", distance="Lp")
    with pytest.raises(ConfigError, match=r"loss_parameters\.distance .*LpDistance does not take"):
        load("TripletMarginLoss", distance={"type": "LpDistance", "powers": 2})


def test_triplets_are_ours_on_plain_distances() -> None:
    pytest.importorskip("pytorch_metric_learning")
    rows = embeddings()
    theirs = load("TripletMarginLoss", margin=0.4, distance=PLAIN)(rows, LABELS)
    matrix = DistanceHead(Metric.EUCLIDEAN).matrix(rows)
    ours, _ = losses.batch_all(matrix, *mining.masks(LABELS), margin=0.4)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    # With their defaults embeddings are normalised first: another loss.
    other = load("TripletMarginLoss", margin=0.4)(rows, LABELS)
    assert other.item() != pytest.approx(ours.item(), rel=0.01)


def test_supervised_contrastive_is_theirs_and_ntxent_with_one_positive_each() -> None:
    pytest.importorskip("pytorch_metric_learning")
    rows = embeddings(1)
    theirs = load("SupConLoss", temperature=0.2)(rows, LABELS)
    ours = losses.supervised_contrastive(rows, LABELS, 0.2)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    # With more positives NT-Xent leaves an anchor's other positives out of the denominator.
    pairs = torch.arange(12).repeat_interleave(2)
    theirs = load("NTXentLoss", temperature=0.2)(rows, pairs)
    ours = losses.supervised_contrastive(rows, pairs, 0.2)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)


def test_their_contrastive_loss_is_not_ours() -> None:
    """Unsquared, and averaged apart over genuine and impostor pairs that cost something."""
    pytest.importorskip("pytorch_metric_learning")
    rows = torch.tensor([[0.0], [0.5], [0.9]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    theirs = load("ContrastiveLoss", pos_margin=0.0, neg_margin=1.0, distance=PLAIN)(rows, labels)
    assert theirs.item() == pytest.approx(0.5 + (0.1 + 0.6) / 2, rel=1e-5)
    distances = torch.tensor([0.5, 0.9, 0.4], dtype=torch.float64)
    ours = losses.contrastive(distances, torch.tensor([True, False, False]), 1.0)
    assert ours.item() == pytest.approx((0.25 + 0.01 + 0.36) / 3)


def test_miners_choose_as_theirs_do() -> None:
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    plain = distances.LpDistance(normalize_embeddings=False)
    rows = embeddings(2)
    measured = distance_matrix(rows, Metric.EUCLIDEAN)
    ours = mining.batch_hard(measured, LABELS, torch.Generator())
    theirs = miners.BatchHardMiner(distance=plain)(rows, LABELS)
    for one, other in zip((ours.anchor, ours.positive, ours.negative), theirs, strict=True):
        assert torch.equal(one, other)
    # They list all semi-hard negatives of a pair, we choose the nearest: one of theirs for each.
    miner = miners.TripletMarginMiner(margin=0.5, type_of_triplets="semihard", distance=plain)
    listed = set(zip(*(index.tolist() for index in miner(rows, LABELS)), strict=True))
    ours = mining.semi_hard(measured, LABELS, torch.Generator())
    chosen = set(
        zip(ours.anchor.tolist(), ours.positive.tolist(), ours.negative.tolist(), strict=True)
    )
    assert {triplet[:2] for triplet in listed} == {triplet[:2] for triplet in chosen & listed}
    assert len(listed) > len(chosen & listed) > 20


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("TripletMarginLoss", {"margin": 0.1, "reducer": "MeanReducer"}),
        ("MultiSimilarityLoss", {}),
        ("CircleLoss", {}),
        ("ArcFaceLoss", {}),  # with a proxy per class, filled in
        ("ProxyAnchorLoss", {"alpha": 16}),
    ],
)
def test_a_step_trains_the_embeddings_and_the_losss_own_weights(
    name: str, parameters: dict[str, Any]
) -> None:
    pytest.importorskip("pytorch_metric_learning")
    torch.manual_seed(0)
    config = TrainConfig(
        loss=f"metric_learning:{name}", loss_parameters=parameters, dimension=8, metric="euclidean"
    )
    objective = Objective(config, classes=6)
    rows = embeddings().float().requires_grad_()
    weights = [rows, *objective.parameters()]
    assert (len(weights) > 1) == (name in ("ArcFaceLoss", "ProxyAnchorLoss"))
    loss, figures = objective(rows, LABELS, torch.Generator())
    steps = torch.autograd.grad(loss, weights)
    assert all(step.isfinite().all() and step.any() for step in steps)
    assert 0.0 < figures.active <= 1.0
    assert figures.genuine == pytest.approx(figures.impostor, rel=0.3)
