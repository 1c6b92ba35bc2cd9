"""Mining: which pairs and triplets of a batch the loss looks at.

In: the labels of a batch, and for the hard ones its distances [batch, batch]. Out: indices; no
gradient passes through a choice. Items are told from themselves by index, never by a distance of 0,
since rounding leaves up to 1e-3 there. A miner is a function (distances, labels, generator) ->
Triplets, so that semi-hard and batch-all stand beside these two.
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


Miner = Callable[[Tensor, Tensor, torch.Generator], Triplets]


def random_pairs(labels: Tensor, generator: torch.Generator) -> Pairs:
    """One genuine and one impostor pair per item, where it has one: balanced by construction.

    Args:
        labels: int64 [batch].
        generator: decides the partners.
    """
    positive, negative = _masks(labels)
    with_positive = positive.any(dim=1).nonzero().squeeze(1)
    with_negative = negative.any(dim=1).nonzero().squeeze(1)
    genuine = _draw(positive[with_positive], generator)
    impostor = _draw(negative[with_negative], generator)
    same = torch.zeros(len(genuine) + len(impostor), dtype=torch.bool)
    same[: len(genuine)] = True
    return Pairs(
        first=torch.cat([with_positive, with_negative]),
        second=torch.cat([genuine, impostor]),
        same=same,
    )


def random_triplets(distances: Tensor, labels: Tensor, generator: torch.Generator) -> Triplets:
    """One triplet per anchor that has a positive and a negative, both drawn at random.

    Args:
        distances: float [batch, batch], not looked at.
        labels: int64 [batch].
        generator: decides the partners.
    """
    positive, negative = _masks(labels)
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
    positive, negative = _masks(labels)
    anchor = (positive.any(dim=1) & negative.any(dim=1)).nonzero().squeeze(1)
    if len(anchor) == 0:
        return Triplets(anchor, anchor, anchor)
    farthest = distances.masked_fill(~positive, -torch.inf).argmax(dim=1)
    nearest = distances.masked_fill(~negative, torch.inf).argmin(dim=1)
    return Triplets(anchor, farthest[anchor], nearest[anchor])


MINERS: dict[str, Miner] = {"random": random_triplets, "batch_hard": batch_hard}


def _masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pairs are genuine and which impostor: bool [batch, batch] each."""
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def _draw(allowed: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one allowed column per row, all with the same chance: bool [n, batch] -> int64 [n]."""
    if len(allowed) == 0:
        return torch.zeros(0, dtype=torch.int64)
    return torch.multinomial(allowed.float(), 1, generator=generator).squeeze(1)
