"""Mining: which pairs and triplets of a batch the loss looks at.

In: the labels of a batch, and for the hard ones its distances [batch, batch]. Out: indices; no
gradient passes through a choice. Items are told from themselves by index, never by a distance of 0,
since rounding leaves up to 1e-3 there. A miner is a function (distances, labels, generator) ->
Triplets. Batch-all chooses nothing, so it is a loss (`losses.batch_all`). What is drawn is drawn on
the CPU, so that a seed means the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of a batch, by index."""

    first: Tensor  # int64 [pairs]
    second: Tensor  # int64 [pairs]
    same: Tensor  # bool [pairs]


@dataclass(frozen=True)
class Triplets:
    """Triplets of a batch, by index; positive and anchor differ."""

    anchor: Tensor  # int64 [triplets]
    positive: Tensor  # int64 [triplets]
    negative: Tensor  # int64 [triplets]


def masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pairs of a batch are genuine and which impostor: bool [batch, batch] each.

    An item and itself are neither.
    """
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


Miner = Callable[[Tensor, Tensor, torch.Generator], Triplets]


def random_pairs(labels: Tensor, generator: torch.Generator) -> Pairs:
    """One genuine and one impostor pair per item, where it has one: balanced by construction.

    Args:
        labels: int64 [batch].
        generator: decides the partners.
    """
    _, negative = masks(labels)
    with_negative = negative.any(dim=1).nonzero().squeeze(1)
    genuine = random_genuine(labels, generator)
    impostor = Pairs(
        first=with_negative,
        second=_draw(negative[with_negative], generator),
        same=torch.zeros(len(with_negative), dtype=torch.bool, device=labels.device),
    )
    return _joined(genuine, impostor)


def random_genuine(labels: Tensor, generator: torch.Generator) -> Pairs:
    """One genuine pair per item, where it has one.

    Args:
        labels: int64 [batch].
        generator: decides the partners.
    """
    positive, _ = masks(labels)
    first = positive.any(dim=1).nonzero().squeeze(1)
    return Pairs(first, _draw(positive[first], generator), torch.ones_like(first).bool())


def pairs_of(triplets: Triplets) -> Pairs:
    """Take triplets as pairs: anchor and positive genuine, anchor and negative impostor."""
    same = torch.ones_like(triplets.anchor).bool()
    return _joined(
        Pairs(triplets.anchor, triplets.positive, same),
        Pairs(triplets.anchor, triplets.negative, ~same),
    )


def random_triplets(distances: Tensor, labels: Tensor, generator: torch.Generator) -> Triplets:
    """One triplet per anchor that has a positive and a negative, both drawn at random.

    Args:
        distances: float [batch, batch], not looked at.
        labels: int64 [batch].
        generator: decides the partners.
    """
    positive, negative = masks(labels)
    anchor = (positive.any(dim=1) & negative.any(dim=1)).nonzero().squeeze(1)
    return Triplets(anchor, _draw(positive[anchor], generator), _draw(negative[anchor], generator))


def batch_hard(distances: Tensor, labels: Tensor, generator: torch.Generator) -> Triplets:
    """The farthest positive and the nearest negative of every anchor that has both.

    Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017.

    Args:
        distances: float [batch, batch].
        labels: int64 [batch].
        generator: not used; nothing is left to chance.
    """
    positive, negative = masks(labels)
    anchor = (positive.any(dim=1) & negative.any(dim=1)).nonzero().squeeze(1)
    if len(anchor) == 0:
        return Triplets(anchor, anchor, anchor)
    farthest = distances.masked_fill(~positive, -torch.inf).argmax(dim=1)
    nearest = distances.masked_fill(~negative, torch.inf).argmin(dim=1)
    return Triplets(anchor, farthest[anchor], nearest[anchor])


def semi_hard(distances: Tensor, labels: Tensor, generator: torch.Generator) -> Triplets:
    """For every genuine pair the nearest negative that is farther off than the positive.

    Schroff, Kalenichenko and Philbin, "FaceNet", 2015: d(a, p) < d(a, n) < d(a, p) + margin. Where
    negatives lie in that band, the nearest of them is chosen. Where all that are farther lie beyond
    it, the nearest of those is, and costs nothing: so the margin need not be known here. Where none
    is farther than the positive, the farthest negative is taken, the mildest of the wrong ones; the
    hardest would pull a young twin into collapse.

    Args:
        distances: float [batch, batch].
        labels: int64 [batch].
        generator: not used; equally distant negatives go by their index.
    """
    positive, negative = masks(labels)
    anchor, partner = (positive & negative.any(dim=1, keepdim=True)).nonzero(as_tuple=True)
    if len(anchor) == 0:
        return Triplets(anchor, anchor, anchor)
    # Each row's negatives from near to far, and after them all that are none.
    ranked, order = distances.masked_fill(~negative, torch.inf).sort(dim=1, stable=True)
    nearer = torch.searchsorted(ranked, distances.contiguous(), right=True)
    rank = torch.minimum(nearer, negative.sum(dim=1, keepdim=True) - 1)
    return Triplets(anchor, partner, order[anchor, rank[anchor, partner]])


MINERS: dict[str, Miner] = {
    "random": random_triplets,
    "semi_hard": semi_hard,
    "batch_hard": batch_hard,
}


def _joined(genuine: Pairs, impostor: Pairs) -> Pairs:
    return Pairs(
        first=torch.cat([genuine.first, impostor.first]),
        second=torch.cat([genuine.second, impostor.second]),
        same=torch.cat([genuine.same, impostor.same]),
    )


def _draw(allowed: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one allowed column per row, all with the same chance: bool [n, batch] -> int64 [n]."""
    if len(allowed) == 0:
        return torch.zeros(0, dtype=torch.int64, device=allowed.device)
    drawn = torch.multinomial(allowed.float().cpu(), 1, generator=generator)
    return drawn.squeeze(1).to(allowed.device)
