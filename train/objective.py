"""The objective of a step: from a batch's embeddings to its loss and the figures worth watching.

Joins what the config names: a head that measures, a miner that chooses, a loss that counts. The
losses and miners themselves know nothing of each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinserve.distance import Metric
from twinserve.train import losses, mining
from twinserve.train.config import TrainConfig
from twinserve.train.heads import DistanceHead, distance_matrix


@dataclass(frozen=True)
class Figures:
    """What one batch tells about the training's health."""

    loss: float
    # Of the pairs or triplets that the miner chose, the share that still costs something; for
    # supervised contrastive, the share of items whose nearest neighbour is of another class.
    active: float
    genuine: float  # mean distance of all genuine pairs of the batch
    impostor: float  # mean distance of all impostor pairs


class Objective:
    """Embeddings [batch, dimension], labels [batch] -> loss, attached to the graph, and figures."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.metric = Metric(config.metric)
        self.head = DistanceHead(self.metric)

    def __call__(
        self, embeddings: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Figures]:
        """Measure one batch; the generator draws what the miner leaves to chance."""
        config = self.config
        distances = distance_matrix(embeddings.detach(), self.metric)
        itself = torch.eye(len(labels), dtype=torch.bool)
        same = labels[:, None] == labels[None, :]
        if config.loss == "supervised_contrastive":
            loss = losses.supervised_contrastive(embeddings, labels, config.temperature)
            nearest = distances.masked_fill(itself, torch.inf).argmin(dim=1)
            active = labels[nearest] != labels
        elif config.loss == "triplet":
            chosen = mining.MINERS[config.mining](distances, labels, generator)
            positive = self.head(embeddings[chosen.anchor], embeddings[chosen.positive])
            negative = self.head(embeddings[chosen.anchor], embeddings[chosen.negative])
            loss = losses.triplet(positive, negative, config.margin)
            active = config.margin + positive - negative > 0
        else:
            pairs = mining.random_pairs(labels, generator)
            measured = self.head(embeddings[pairs.first], embeddings[pairs.second])
            loss = losses.contrastive(measured, pairs.same, config.margin)
            active = pairs.same & (measured > 0) | ~pairs.same & (measured < config.margin)
        return loss, Figures(
            loss=loss.item(),
            active=active.float().mean().item(),
            genuine=distances[same & ~itself].mean().item(),
            impostor=distances[~same].mean().item(),
        )
