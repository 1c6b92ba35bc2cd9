"""The loss over truncated embeddings: a sum, each part measured as serving measures it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twinserve.distance import Metric, pairwise, truncated
from twinserve.errors import ConfigError
from twinserve.manifest import TensorInput
from twinserve.train.build import build
from twinserve.train.config import TrainConfig, load_config
from twinserve.train.matryoshka import Matryoshka, objective_of
from twinserve.train.objective import Objective
from twinserve.train.pairs import LinkBatch

LABELS = torch.tensor([0, 0, 1, 1])


@pytest.fixture
def embeddings() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 8, generator=generator, dtype=torch.float64)


def test_the_loss_is_the_sum_over_the_whole_and_each_truncation(embeddings: torch.Tensor) -> None:
    config = TrainConfig(dimension=8, matryoshka=(2, 4))
    loss, figures = objective_of(config)(embeddings, LABELS, torch.Generator())
    plain = Objective(TrainConfig(dimension=8))
    cuts = [embeddings, *(torch.from_numpy(truncated(embeddings.numpy(), n)) for n in (4, 2))]
    parts = [plain(cut, LABELS, torch.Generator()) for cut in cuts]
    assert loss.item() == pytest.approx(
        sum(part.item() for part, _ in parts), rel=1e-6
    )  # truncated gives float32
    assert figures.loss == loss.item() / 3
    assert figures.genuine == parts[0][1].genuine


def test_lengths_count_in_the_whole_and_not_in_truncations(embeddings: torch.Tensor) -> None:
    config = TrainConfig(
        dimension=8, matryoshka=(4,), metric="euclidean", normalized=False, loss="contrastive"
    )
    same = torch.tensor([1.0, 0.0])
    first, second = embeddings[:2], embeddings[2:]
    total, _ = objective_of(config).of_pairs(first, second, same)
    whole, _ = Objective(config).of_pairs(first, second, same)
    near = [
        pairwise(truncated(a[None].numpy(), 4), truncated(b[None].numpy(), 4), Metric.EUCLIDEAN)
        for a, b in zip(first, second, strict=True)
    ]
    distances = np.concatenate(near).ravel()
    by_hand = (distances[0] ** 2 + max(0.0, config.margin - distances[1]) ** 2) / 2
    assert (total - whole).item() == pytest.approx(by_hand, rel=1e-6)


def test_triplets_and_heads_with_weights_have_a_part_per_size(embeddings: torch.Tensor) -> None:
    config = TrainConfig(dimension=8, matryoshka=(4, 2), loss="concatenation")
    objective = objective_of(config)
    assert isinstance(objective, Matryoshka)
    loss, _ = objective.of_triplets(embeddings.float(), embeddings.float(), -embeddings.float())
    torch.autograd.backward(loss)
    widths = [weight.shape[1] for weight in objective.parameters() if weight.dim() == 2]
    assert widths == [24, 12, 6]
    assert all(weight.grad is not None for weight in objective.parameters())


def test_a_batch_of_pairs_as_the_loop_hands_it_on_has_a_part_per_size(
    embeddings: torch.Tensor,
) -> None:
    objective = objective_of(TrainConfig(dimension=8, matryoshka=(4,), loss="contrastive"))
    batch = LinkBatch(np.array([[0, 1], [2, 3]]), np.array([1.0, 0.0], dtype=np.float32))
    loss, figures = objective.of_batch(batch, embeddings, torch.Generator())
    same = torch.tensor([1.0, 0.0])
    by_name, named = objective.of_pairs(embeddings[:2], embeddings[2:], same)
    assert loss.item() == by_name.item()
    assert figures == named


def test_the_twin_states_its_truncations_falling() -> None:
    config = load_config(None, ["twin=mlp", "dimension=8", "matryoshka=2,4,2"])
    assert build(config, TensorInput((3,))).truncations == (4, 2)


def test_sizes_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="matryoshka names 64, and the embedding has 64"):
        TrainConfig(matryoshka=(64,))
    with pytest.raises(ConfigError, match="must be numbers from 1"):
        TrainConfig(matryoshka=(0,))
    with pytest.raises(ConfigError, match="it takes a list of whole numbers"):
        load_config(None, ["matryoshka=half"])
