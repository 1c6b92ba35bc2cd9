"""Heads are symmetric to the last bit, as computed by hand, and finite where inputs are equal."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from twinserve.distance import Metric
from twinserve.manifest import TensorInput
from twinserve.train.heads import (
    NORM_EPS,
    ConcatenationHead,
    CosineHead,
    DistanceHead,
    Head,
    distance_matrix,
)
from twinserve.train.mlp import mlp
from twinserve.train.twins import Siamese

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def heads(dimension: int) -> list[Head]:
    torch.manual_seed(dimension)
    return [*map(DistanceHead, Metric), CosineHead(), ConcatenationHead(dimension)]


@DTYPES
@pytest.mark.parametrize("count", [1, 2, 3, 7, 33, 130])
@pytest.mark.parametrize("dimension", [1, 5, 64, 129])
def test_every_head_is_symmetric_to_the_last_bit(
    count: int, dimension: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(count)
    first, second = torch.randn(2, count, dimension, generator=generator, dtype=dtype)
    for head in heads(dimension):
        head.to(dtype)
        assert torch.equal(head(first, second), head(second, first)), head


def test_the_plain_layer_is_not_symmetric() -> None:
    """The trap that averaging over both orders avoids."""
    head = ConcatenationHead(5)
    first, second = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    apart = (first - second).abs()
    one = head.linear(torch.cat([first, second, apart], dim=1))
    other = head.linear(torch.cat([second, first, apart], dim=1))
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize(
    "head", [CosineHead(), ConcatenationHead(6)], ids=lambda h: type(h).__name__
)
def test_a_siamese_pair_is_symmetric_under_every_head(head: Head) -> None:
    contract = TensorInput(shape=(9,))
    twin = mlp(contract, dimension=6, hidden=8, metric=Metric.COSINE, normalized=False)
    siamese = Siamese(twin, head).eval()
    first, second = torch.randn(2, 11, 9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(siamese(first, second), siamese(second, first))


@DTYPES
def test_the_cosine_head_is_as_computed_by_hand(dtype: torch.dtype) -> None:
    # At right angles, opposite, along, at 45 degrees, and against a zero vector.
    first = torch.tensor([[1, 0], [1, 0], [3, 4], [2, 0], [0, 0]], dtype=dtype)
    second = torch.tensor([[0, 5], [-2, 0], [6, 8], [1, 1], [1, 1]], dtype=dtype)
    cosines = CosineHead()(first, second)
    assert cosines.dtype is dtype
    assert cosines.tolist() == pytest.approx([0.0, -1.0, 1.0, math.sqrt(0.5), 0.0], abs=1e-6)


def test_the_cosine_head_equals_torchs_own() -> None:
    first, second = torch.randn(2, 50, 12, dtype=torch.float64)
    assert torch.allclose(CosineHead()(first, second), F.cosine_similarity(first, second))


@DTYPES
def test_the_concatenation_head_is_as_computed_by_hand(dtype: torch.dtype) -> None:
    head = ConcatenationHead(2).to(dtype)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1, 2, 3, 4, 5, 6], [0, 1, 0, -1, 2, 0]]))
        head.linear.bias.copy_(torch.tensor([10, 20]))
    u, v = torch.tensor([[1, 2]], dtype=dtype), torch.tensor([[3, -1]], dtype=dtype)
    # (u, v, |u-v|) = 1 2 3 -1 2 3: 1+4+9-4+10+18+10 = 48; 2+1+4+20 = 27.
    # (v, u, |u-v|) = 3 -1 1 2 2 3: 3-2+3+8+10+18+10 = 50; -1-2+4+20 = 21.
    assert head(u, v).tolist() == [[49.0, 24.0]]


@pytest.mark.parametrize("metric", list(Metric))
def test_the_matrix_holds_what_the_head_gives_pair_by_pair(metric: Metric) -> None:
    embeddings = torch.randn(40, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    embeddings[5] = embeddings[3]  # a pair of equals, where a quick matrix rounds
    head = DistanceHead(metric)
    matrix = head.matrix(embeddings)
    i, j = torch.triu_indices(40, 40, offset=1)
    assert torch.allclose(matrix[i, j], head(embeddings[i], embeddings[j]), atol=1e-12)
    assert torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix[i, j], distance_matrix(embeddings, metric)[i, j], atol=1e-7)


@pytest.mark.parametrize("metric", list(Metric))
def test_the_matrix_has_the_gradients_of_the_pairs(metric: Metric) -> None:
    embeddings = torch.randn(9, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = torch.rand(9, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    i, j = torch.triu_indices(9, 9, offset=1)
    head = DistanceHead(metric)
    gradients = []
    for measure in (lambda e: head.matrix(e)[i, j], lambda e: head(e[i], e[j])):
        leaf = embeddings.clone().requires_grad_()
        (measure(leaf) * weights[i, j]).sum().backward()
        gradients.append(leaf.grad)
    assert torch.allclose(*gradients, atol=1e-12)  # type: ignore[arg-type]


def test_gradients_are_finite_where_embeddings_are_equal_or_zero() -> None:
    for head in heads(2):
        rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
        head(rows[[0, 2, 0]], rows[[1, 3, 2]]).sum().backward()
        assert rows.grad is not None
        assert rows.grad.isfinite().all(), head
        assert rows.grad.abs().max() <= 10.0 / NORM_EPS, head
    for metric in Metric:
        rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
        DistanceHead(metric).matrix(rows).sum().backward()
        assert rows.grad is not None
        assert rows.grad.isfinite().all(), metric
