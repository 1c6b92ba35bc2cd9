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
        same: bool [pairs], y: whether the two share a subject; or float in [0, 1], how much so.
        margin: m, in the unit of the distances; impostors beyond it cost nothing.
    """
    y = same.to(distances.dtype)
    losses = y * distances.square() + (1.0 - y) * (margin - distances).clamp(min=0.0).square()
    return _mean(losses)


def cosine_targets(same: Tensor, different: float) -> Tensor:
    """Return the cosines that pairs should have: different + (1 - different) y.

    Args:
        same: float [pairs] in [0, 1], y: 1 becomes a cosine of 1, 0 becomes `different`, and a
            score in between lies in between.
        different: -1 asks different subjects to point away from each other, 0 to be at right
            angles, as Sentence-BERT does with the scores of STS-b.
    """
    return different + (1.0 - different) * same


def mean_squared(cosines: Tensor, targets: Tensor) -> Tensor:
    """Return (cos - target)^2, averaged over pairs.

    The regression objective of Reimers and Gurevych, "Sentence-BERT", 2019. This is not torch's
    CosineEmbeddingLoss, which is linear, and costs nothing for an impostor's cosine below 0.

    Args:
        cosines: float [pairs].
        targets: float [pairs] in [-1, 1], of `cosine_targets`.
    """
    return _mean((cosines - targets.to(cosines.dtype)).square())


def cross_entropy(logits: Tensor, same: Tensor) -> Tensor:
    """Softmax cross-entropy of "different" and "same", averaged over pairs.

    The classification objective of Reimers and Gurevych, "Sentence-BERT", 2019, with two classes.

    Args:
        logits: float [pairs, 2]; column 1 is "same".
        same: bool [pairs], or float in [0, 1]: the chance that the two share a subject.
    """
    y = same.to(logits.dtype)
    log_share = logits.log_softmax(dim=1)
    return _mean(-(1.0 - y) * log_share[:, 0] - y * log_share[:, 1])


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


def batch_all(
    distances: Tensor, genuine: Tensor, impostor: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Return the triplet loss of all valid triplets, averaged over those that cost something.

    "Batch all", L_BA with the mean over its non-zero terms, of Hermans, Beyer and Leibe, "In
    Defense of the Triplet Loss for Person Re-Identification", 2017: most triplets of a batch soon
    cost nothing, and would wash out the few that do. Takes memory for (genuine pairs) x batch
    distances.

    Args:
        distances: float [batch, batch], plain, with gradients.
        genuine: bool [batch, batch], which of them are of a genuine pair, none on the diagonal.
        impostor: bool [batch, batch], which of them are of an impostor pair.
        margin: m, in the unit of the distances.

    Returns:
        The loss, and the share of valid triplets that cost something (0 where none is valid).
    """
    anchor, positive = genuine.nonzero(as_tuple=True)
    valid = impostor[anchor]
    costs = (margin + distances[anchor, positive][:, None] - distances[anchor]).clamp(min=0.0)
    costs = costs.masked_fill(~valid, 0.0)
    costly = (costs > 0).sum()
    return costs.sum() / costly.clamp(min=1), costly / valid.sum().clamp(min=1)


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


def multiple_negatives(
    anchors: Tensor, candidates: Tensor, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """Multiple negatives ranking: tell an anchor's own candidate from all others, over anchors.

    Henderson et al., "Efficient Natural Language Response Suggestion for Smart Reply", 2017, on
    cosines: -log( exp(cos(a_i, c_i) / t) / sum over j of exp(cos(a_i, c_j) / t) ). The scale of 20
    that sentence-transformers multiplies by is a temperature of 0.05.

    Args:
        anchors: float [n, dimension], scaled to unit length here.
        candidates: float [m, dimension], m >= n, likewise; candidate i is anchor i's own, and those
            beyond n are further negatives.
        temperature: t; smaller weighs the hardest negatives more.
        excluded: bool [n, m]; candidates that are no negative of an anchor, such as others of its
            class.
    """
    similarities = unit(anchors) @ unit(candidates).T / temperature
    if excluded is not None:
        similarities = similarities.masked_fill(excluded, torch.finfo(similarities.dtype).min)
    return _mean(-similarities.log_softmax(dim=1).diagonal())


def _mean(losses: Tensor) -> Tensor:
    """Mean that is 0, and attached to the graph, for no losses at all."""
    return losses.sum() / max(losses.numel(), 1)
