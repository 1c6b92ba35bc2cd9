"""Losses: pure functions of distances or embeddings and labels, named after their papers.

In: distances as a head measured them, or embeddings. Out: a scalar attached to the graph. Each is
averaged over the pairs, triplets or anchors that are valid; where none is, the loss is 0 and its
gradient too, since a run over several processes must still go backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinserve.train.heads import unit


def contrastive(distances: Tensor, same: Tensor, margin: float) -> Tensor:
    """Return y d^2 + (1 - y) max(0, m - d)^2, averaged over pairs.

    Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", 2006,
    without their factor of one half.

    Args:
        distances: float [pairs], plain (not squared).
        same: bool [pairs], y: whether the two share a subject.
        margin: m, in the unit of the distances; impostors beyond it cost nothing.
    """
    y = same.to(distances.dtype)
    losses = y * distances.square() + (1.0 - y) * (margin - distances).clamp(min=0.0).square()
    return _mean(losses)


def triplet(anchor_positive: Tensor, anchor_negative: Tensor, margin: float) -> Tensor:
    """Return max(0, m + d(a, p) - d(a, n)), averaged over triplets.

    Weinberger and Saul, "Distance Metric Learning for Large Margin Nearest Neighbor
    Classification", 2009, on plain distances as in Hermans et al., 2017 (FaceNet's are squared, so
    that its margin of 0.2 means another thing).

    Args:
        anchor_positive: float [triplets], d(a, p).
        anchor_negative: float [triplets], d(a, n).
        margin: m, in the unit of the distances.
    """
    return _mean((margin + anchor_positive - anchor_negative).clamp(min=0.0))


def supervised_contrastive(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """L_out of Khosla et al., "Supervised Contrastive Learning", 2020, over valid anchors.

    For anchor i with positives P(i), and A(i) all others of the batch:
    -1/|P(i)| sum over p of log( exp(z_i z_p / t) / sum over a of exp(z_i z_a / t) ).
    With one positive per anchor this is NT-Xent (Chen et al., "SimCLR", 2020).

    Args:
        embeddings: float [batch, dimension], scaled to unit length here.
        labels: int [batch]; an anchor without a positive is left out of the average.
        temperature: t; smaller weighs the hardest negatives more.
    """
    directions = unit(embeddings)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    # A finite stand-in for minus infinity: a batch of one would otherwise divide 0 by 0.
    similarities = (directions @ directions.T / temperature).masked_fill(
        itself, torch.finfo(embeddings.dtype).min
    )
    log_share = similarities.log_softmax(dim=1).masked_fill(~positive, 0.0)
    positives = positive.sum(dim=1)
    losses = -log_share.sum(dim=1) / positives.clamp(min=1)
    return losses.sum() / (positives > 0).sum().clamp(min=1)


def _mean(losses: Tensor) -> Tensor:
    """Mean that is 0, and attached to the graph, for no losses at all."""
    return losses.sum() / max(losses.numel(), 1)
