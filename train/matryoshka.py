"""Matryoshka: embeddings of which the leading coordinates alone are of use too.

In: an objective's config and the smaller dimensions. Out: an objective whose loss is summed over
the whole embedding and each of its truncations, scaled to unit length as `distance.truncated` does
(Kusupati et al., 2022, with equal weights).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from twinserve.errors import ConfigError
from twinserve.train.config import TrainConfig
from twinserve.train.data import Batch
from twinserve.train.heads import unit
from twinserve.train.objective import Figures, Objective
from twinserve.train.pairs import LinkBatch

Measured = tuple[Tensor, Figures]


class Matryoshka(nn.Module):
    """The calls of `Objective`, over the whole embedding and its truncations.

    The figures are those of the whole embedding, except the loss, which is the mean over all
    sizes: it can be held against a margin, and against other runs.

    Args:
        config: names the loss, the dimension and its truncations.
        classes: see `Objective`.
    """

    def __init__(self, config: TrainConfig, classes: int = 0) -> None:
        super().__init__()
        self.sizes = (config.dimension, *truncations_of(config, config.dimension))
        # A head or loss with weights of its own has them per size.
        self.objectives = nn.ModuleList(
            Objective(dataclasses.replace(config, dimension=size, matryoshka=()), classes)
            for size in self.sizes
        )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        progress: float = 0.0,
    ) -> Measured:
        """Measure one batch of items with their classes; see `Objective.forward`."""
        return self._sum(lambda one, cut: one(cut(embeddings), labels, generator, progress))

    def of_batch(
        self,
        batch: Batch | LinkBatch,
        embeddings: Tensor,
        generator: torch.Generator,
        progress: float = 0.0,
    ) -> Measured:
        """Measure a batch of classes, pairs or triplets; see `Objective.of_batch`."""
        return self._sum(lambda one, cut: one.of_batch(batch, cut(embeddings), generator, progress))

    def of_pairs(
        self, first: Tensor, second: Tensor, same: Tensor, members: Tensor | None = None
    ) -> Measured:
        """Measure pairs; see `Objective.of_pairs`."""
        return self._sum(lambda one, cut: one.of_pairs(cut(first), cut(second), same, members))

    def of_triplets(
        self, anchor: Tensor, positive: Tensor, negative: Tensor, members: Tensor | None = None
    ) -> Measured:
        """Measure triplets; see `Objective.of_triplets`."""
        return self._sum(
            lambda one, cut: one.of_triplets(cut(anchor), cut(positive), cut(negative), members)
        )

    def _sum(
        self, measure: Callable[[Objective, Callable[[Tensor], Tensor]], Measured]
    ) -> Measured:
        total: Tensor | None = None
        whole: Figures | None = None
        for size, objective in zip(self.sizes, self.objectives, strict=True):
            assert isinstance(objective, Objective)
            cut = self._cut_to(size)
            loss, figures = measure(objective, cut)
            total = loss if total is None else total + loss
            whole = figures if whole is None else whole
        assert total is not None
        assert whole is not None
        return total, dataclasses.replace(whole, loss=total.item() / len(self.sizes))

    def _cut_to(self, size: int) -> Callable[[Tensor], Tensor]:
        if size == self.sizes[0]:
            return lambda embeddings: embeddings
        return lambda embeddings: unit(embeddings[:, :size])


def objective_of(config: TrainConfig, classes: int = 0) -> Objective | Matryoshka:
    """Make a config's objective; its dimension must be that of the twin.

    Raises:
        ConfigError: a truncation that is none.
    """
    return Matryoshka(config, classes) if config.matryoshka else Objective(config, classes)


def truncations_of(config: TrainConfig, dimension: int) -> tuple[int, ...]:
    """Return the smaller dimensions that a config trains, falling, each once.

    Raises:
        ConfigError: one that is not below the whole.
    """
    if config.matryoshka and max(config.matryoshka) >= dimension:
        raise ConfigError(
            f"matryoshka names {max(config.matryoshka)}, and the embedding has {dimension} "
            "coordinates; name smaller dimensions alone"
        )
    return tuple(sorted(set(config.matryoshka), reverse=True))
