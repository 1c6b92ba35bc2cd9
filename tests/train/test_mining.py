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


def test_semi_hard_takes_the_nearest_negative_beyond_the_positive_else_the_farthest() -> None:
    # On a line: class 0 at 0 and 4; class 1 at 1, 6 and 7.
    places = torch.tensor([[0.0], [4.0], [1.0], [6.0], [7.0]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    chosen = mining.semi_hard(distance_matrix(places, Metric.EUCLIDEAN), labels, GENERATOR)
    assert torch.stack([chosen.anchor, chosen.positive, chosen.negative]).T.tolist() == [
        [0, 1, 3],  # from 0: positive at distance 4; negatives at 1, 6, 7
        [1, 0, 4],  # from 4: positive at 4; negatives at 3, 2, 3, none beyond: the last farthest
        [2, 3, 1],  # from 1: positive at 5; negatives at 1 and 3, none beyond
        [2, 4, 1],
        [3, 2, 0],  # from 6: positive at 5; negatives at 6 and 2
        [3, 4, 1],  # from 6: positive at 1; both beyond, the nearer
        [4, 2, 0],
        [4, 3, 1],
    ]


def test_semi_hard_equals_a_plain_search() -> None:
    generator = torch.Generator().manual_seed(11)
    embeddings = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 8, (30,), generator=generator)
    distances = distance_matrix(embeddings, Metric.COSINE)
    chosen = mining.semi_hard(distances, labels, GENERATOR)
    expected = []
    for a in range(30):
        negatives = [n for n in range(30) if labels[n] != labels[a]]
        for p in range(30):
            if p == a or labels[p] != labels[a]:
                continue
            beyond = [n for n in negatives if distances[a, n] > distances[a, p]]
            n = (
                min(beyond, key=lambda n: distances[a, n].item())
                if beyond
                else max(negatives, key=lambda n: distances[a, n].item())
            )
            expected.append((a, p, n))
    found = zip(
        chosen.anchor.tolist(), chosen.positive.tolist(), chosen.negative.tolist(), strict=True
    )
    assert list(found) == expected


def test_a_negative_as_far_as_the_positive_is_not_semi_hard() -> None:
    # From 0: positive at 1, negatives at 1 and 2.
    distances = torch.tensor([[0.0, 1.0, 1.0, 2.0]] * 4)
    chosen = mining.semi_hard(distances, torch.tensor([0, 0, 1, 2]), GENERATOR)
    assert chosen.negative[0].item() == 3


def test_miners_never_leave_the_batch_when_distances_are_not_numbers() -> None:
    """The loss is then NaN too: the loop stops with the culprit batch, not with an IndexError."""
    labels = torch.tensor([0, 0, 1, 1])
    for value in (torch.nan, torch.inf):
        for miner in mining.MINERS.values():
            chosen = miner(torch.full((4, 4), value), labels, GENERATOR)
            for index in (chosen.anchor, chosen.positive, chosen.negative):
                assert len(index) == 4
                assert ((index >= 0) & (index < 4)).all()


def test_pairs_of_triplets_are_their_two_sides() -> None:
    triplets = mining.Triplets(*torch.tensor([[0, 1], [2, 3], [4, 5]]))
    pairs = mining.pairs_of(triplets)
    assert pairs.first.tolist() == [0, 1, 0, 1]
    assert pairs.second.tolist() == [2, 3, 4, 5]
    assert pairs.same.tolist() == [True, True, False, False]


def test_random_genuine_pairs_leave_out_who_is_alone() -> None:
    labels = torch.tensor([3, 5, 3, 7, 5, 3])
    pairs = mining.random_genuine(labels, torch.Generator().manual_seed(0))
    assert pairs.first.tolist() == [0, 1, 2, 4, 5]
    assert pairs.same.all()
    assert (pairs.first != pairs.second).all()
    assert torch.equal(labels[pairs.first], labels[pairs.second])
