"""Heads: what compares two embeddings during training.

In: two batches of embeddings. Out: one result per row: a distance, a cosine, or the logits of
"different" and "same". Every head is symmetric to the last bit, head(a, b) == head(b, a), since "is
the same subject" is; and its gradient is finite where the two embeddings are equal or zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinserve.distance import Metric

# Norms below it count as it: the gradient of a direction grows with 1 / norm.
NORM_EPS = 1e-4


class Head(nn.Module):
    """float [n, dimension] x [n, dimension] -> float [n] or [n, 2], symmetric in its arguments."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare corresponding rows."""
        raise NotImplementedError


class DistanceHead(Head):
    """The distance of two embeddings under a metric, as `twinserve.distance.paired` gives it."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distances of corresponding rows: [n]."""
        if self.metric is Metric.EUCLIDEAN:
            return safe_sqrt((first - second).square().sum(dim=-1))
        # 1 - cos = ||u - v||^2 / 2 on unit vectors: exactly 0 for equal inputs, never below.
        return (unit(first) - unit(second)).square().sum(dim=-1) / 2.0

    def matrix(self, embeddings: Tensor) -> Tensor:
        """Return all distances of a batch, with their gradients: [n, dimension] -> [n, n].

        For a loss that looks at all of them; `distance_matrix` is quicker, for choosing alone. The
        diagonal is not exactly 0 under cosine: mask it by index.
        """
        if self.metric is Metric.COSINE:
            directions = unit(embeddings)
            return 1.0 - directions @ directions.T
        # By differences: the quicker product rounds by up to 1e-3, and divides by that backward.
        return torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")


class CosineHead(Head):
    """The cosine of two embeddings, in [-1, 1]; 0 where one of them is zero.

    The head of Sentence-BERT's regression objective (Reimers and Gurevych, 2019).
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosines of corresponding rows: [n]."""
        return (unit(first) * unit(second)).sum(dim=-1)


class ConcatenationHead(Head):
    """Logits of "different" and "same" from a linear layer on (u, v, |u - v|).

    Sentence-BERT's classification objective (Reimers and Gurevych, 2019), made symmetric: their
    layer tells (u, v) from (v, u), so the logits are averaged over both orders.

    Args:
        dimension: of an embedding.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * dimension, 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the logits of corresponding rows: [n, 2]; column 1 is "same"."""
        apart = (first - second).abs()
        # Two calls of one shape, not one on both orders: a row's place in a product may decide its
        # last bit, and a sum of two does not depend on their order.
        one: Tensor = self.linear(torch.cat([first, second, apart], dim=-1))
        other: Tensor = self.linear(torch.cat([second, first, apart], dim=-1))
        return (one + other) / 2.0


def safe_sqrt(squared: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinity (and NaN one step further down)."""
    zero = squared <= 0.0
    root = torch.where(zero, torch.ones_like(squared), squared).sqrt()
    return torch.where(zero, torch.zeros_like(squared), root)


def unit(embeddings: Tensor) -> Tensor:
    """Rows scaled to length one; the gradient at a zero row is 1 / NORM_EPS at most."""
    # As F.normalize, whose expand_as would leave a chain of shape arithmetic in the exported graph.
    norms: Tensor = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
    return embeddings / norms.clamp(min=NORM_EPS)


def wide(embeddings: Tensor) -> Tensor:
    """At least float32: lengths and distances of half precision cannot tell near from nearer."""
    half = embeddings.dtype in (torch.float16, torch.bfloat16)
    return embeddings.float() if half else embeddings


def distance_matrix(embeddings: Tensor, metric: Metric) -> Tensor:
    """All distances of a batch: float [n, dimension] -> [n, n], for selection only (no gradient).

    One matrix product, so that small distances carry some 1e-3 of rounding; losses measure the
    selected pairs again through the head. The diagonal is not exactly 0: mask it by index.
    """
    with torch.no_grad():
        if metric is Metric.COSINE:
            directions = unit(embeddings)
            return (1.0 - directions @ directions.T).clamp(min=0.0)
        squared = embeddings.square().sum(dim=1)
        gram = embeddings @ embeddings.T
        return (squared[:, None] + squared[None, :] - 2.0 * gram).clamp(min=0.0).sqrt()
