"""Mining on batches that can be checked by eye, and against a plain search."""

from __future__ import annotations

import torch

from twinserve.distance import Metric
from twinserve.train import mining
from twinserve.train.heads import distance_matrix

GENERATOR = torch.Generator()


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative() -> None:
    # On a line: class 0 at 0, 1, 5; class 1 at 2, 9.
    places = torch.tensor([[0.0], [1.0], [5.0], [2.0], [9.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    chosen = mining.batch_hard(distance_matrix(places, Metric.EUCLIDEAN), labels, GENERATOR)
    assert chosen.anchor.tolist() == [0, 1, 2, 3, 4]
    assert chosen.positive.tolist() == [2, 2, 0, 4, 3]
    assert chosen.negative.tolist() == [3, 3, 3, 1, 2]


def test_batch_hard_equals_a_plain_search() -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 9, (40,), generator=generator)
    distances = distance_matrix(embeddings, Metric.EUCLIDEAN)
    chosen = mining.batch_hard(distances, labels, generator)
    found = {
        anchor: (positive, negative)
        for anchor, positive, negative in zip(
            chosen.anchor.tolist(), chosen.positive.tolist(), chosen.negative.tolist(), strict=True
        )
    }
    for i in range(40):
        positives = [j for j in range(40) if j != i and labels[j] == labels[i]]
        negatives = [j for j in range(40) if labels[j] != labels[i]]
        if not positives:
            assert i not in found
            continue
        assert found[i] == (
            max(positives, key=lambda j: distances[i, j].item()),
            min(negatives, key=lambda j: distances[i, j].item()),
        )


def test_an_anchor_is_never_its_own_positive_even_among_equal_embeddings() -> None:
    embeddings = torch.full((6, 3), 0.3)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    distances = distance_matrix(embeddings, Metric.EUCLIDEAN)
    for miner in mining.MINERS.values():
        chosen = miner(distances, labels, GENERATOR)
        assert (chosen.anchor != chosen.positive).all()
        assert (labels[chosen.anchor] == labels[chosen.positive]).all()
        assert (labels[chosen.anchor] != labels[chosen.negative]).all()


def test_random_triplets_reach_every_partner() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(200):
        chosen = mining.random_triplets(torch.zeros(6, 6), labels, generator)
        assert chosen.anchor.tolist() == [0, 1, 2, 3, 4]  # the last has no positive
        seen.add((chosen.positive[0].item(), chosen.negative[0].item()))
    assert seen == {(p, n) for p in (1, 2) for n in (3, 4, 5)}


def test_random_pairs_are_balanced_and_labelled_right() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    pairs = mining.random_pairs(labels, torch.Generator().manual_seed(0))
    assert pairs.same.sum().item() == 6
    assert len(pairs.same) == 12
    assert (pairs.first != pairs.second).all()
    assert torch.equal(labels[pairs.first] == labels[pairs.second], pairs.same)


def test_a_batch_of_one_class_or_of_singles_gives_no_triplets() -> None:
    for labels in (torch.zeros(4, dtype=torch.int64), torch.arange(4)):
        for miner in mining.MINERS.values():
            assert len(miner(torch.rand(4, 4), labels, GENERATOR).anchor) == 0
