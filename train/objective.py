"""The objective of a step: from a batch's embeddings to its loss and the figures worth watching.

Joins what the config names: a head that measures, a miner that chooses, a loss that counts. The
losses and miners themselves know nothing of each other. Call it outside autocast: it measures in
the type that it is given, at least float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twinserve.distance import Metric
from twinserve.errors import ConfigError
from twinserve.train import curriculum, losses, mining
from twinserve.train.config import LIBRARY_LOSS, TrainConfig
from twinserve.train.data import Batch
from twinserve.train.heads import (
    ConcatenationHead,
    CosineHead,
    DistanceHead,
    Head,
    distance_matrix,
    unit,
    wide,
)
from twinserve.train.metric_learning import load_loss
from twinserve.train.mining import Pairs, Triplets
from twinserve.train.pairs import LinkBatch


@dataclass(frozen=True)
class Figures:
    """What one batch tells about the training's health."""

    loss: float
    # Of the pairs or triplets that the miner chose, the share that still costs something. Where all
    # cost something, the share still on the wrong side: of cosine_mse, farther from its target than
    # halfway to the other; of concatenation, called wrongly; of multiple negatives, anchors nearer
    # to another's candidate; of the others, items whose nearest neighbour is of another class.
    active: float
    genuine: float  # mean distance of all genuine pairs of the batch; NaN where it has none
    impostor: float  # mean distance of all impostor pairs; likewise


class Objective(nn.Module):
    """Embeddings [batch, dimension], labels [batch] -> loss, attached to the graph, and figures.

    A head or a loss with weights of its own (the concatenation, the proxies of some losses of
    pytorch-metric-learning) holds them here: they are trained beside the twin's, and not exported.

    Args:
        config: names the loss, the miners and their numbers.
        classes: labels are below it; only a loss with a proxy per class looks at it.

    Raises:
        ConfigError: a loss of pytorch-metric-learning that cannot be had.
    """

    def __init__(self, config: TrainConfig, classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.metric = Metric(config.metric)
        self.distance = DistanceHead(self.metric)
        self.curriculum = curriculum.stages(config.mining)
        self.head: Head = self.distance
        if config.loss == "cosine_mse":
            self.head = CosineHead()
        elif config.loss == "concatenation":
            self.head = ConcatenationHead(config.dimension)
        self.library: nn.Module | None = None
        if config.loss.startswith(LIBRARY_LOSS):
            self.library = load_loss(
                config.loss.removeprefix(LIBRARY_LOSS),
                config.loss_parameters,
                classes=classes,
                dimension=config.dimension,
            )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        progress: float = 0.0,
    ) -> tuple[Tensor, Figures]:
        """Measure one batch of items with their classes.

        Args:
            embeddings: float [batch, dimension].
            labels: int64 [batch].
            generator: of the CPU, draws what the miner leaves to chance.
            progress: share of the run's steps done, which the curriculum goes by.
        """
        embeddings = wide(embeddings)
        distances = distance_matrix(embeddings.detach(), self.metric)
        genuine, impostor = mining.masks(labels)
        miner = curriculum.at(self.curriculum, progress)
        if self.config.loss == "triplet" and miner == "batch_all":
            every = self.distance.matrix(embeddings)
            loss, active = losses.batch_all(every, genuine, impostor, self.config.margin)
        elif self.config.loss == "triplet":
            triplets = mining.MINERS[miner](distances, labels, generator)
            loss, active = self._triplets(*_rows(embeddings, triplets))
        elif self.config.loss == "multiple_negatives":
            pairs = mining.random_genuine(labels, generator)
            first, second = embeddings[pairs.first], embeddings[pairs.second]
            # Others' candidates of an anchor's own class are no negatives.
            others = torch.eye(len(first), dtype=torch.bool, device=labels.device).logical_not()
            classes = labels[pairs.first]
            excluded = (classes[:, None] == classes[None, :]) & others
            loss, active = self._multiple_negatives(first, second, excluded)
        elif self.config.loss == "supervised_contrastive" or self.library is not None:
            if self.library is not None:
                loss = self.library(embeddings, labels)
            else:
                loss = losses.supervised_contrastive(embeddings, labels, self.config.temperature)
            itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
            nearest = distances.masked_fill(itself, torch.inf).argmin(dim=1)
            active = labels[nearest] != labels
        else:
            pairs = self._pairs_by(miner, distances, labels, generator)
            first, second = embeddings[pairs.first], embeddings[pairs.second]
            loss, active = self._pairs(first, second, pairs.same.to(embeddings.dtype))
        return loss, _figures(loss, active, distances[genuine], distances[impostor])

    def of_batch(
        self,
        batch: Batch | LinkBatch,
        embeddings: Tensor,
        generator: torch.Generator,
        progress: float = 0.0,
    ) -> tuple[Tensor, Figures]:
        """Measure a batch of classes, pairs or triplets: float [len(batch.items), dimension].

        Raises:
            ConfigError: the config's loss does not take such a batch.
        """
        if isinstance(batch, Batch):
            labels = torch.from_numpy(batch.labels).to(embeddings.device)
            return self.forward(embeddings, labels, generator, progress)
        rows, ends = batch.members.shape
        end = embeddings.reshape(ends, rows, -1)
        members = torch.from_numpy(batch.members).to(embeddings.device)
        if batch.targets is None:
            return self.of_triplets(end[0], end[1], end[2], members)
        targets = torch.from_numpy(batch.targets).to(embeddings.device)
        return self.of_pairs(end[0], end[1], targets, members)

    def of_pairs(
        self, first: Tensor, second: Tensor, same: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, Figures]:
        """Measure pairs that came labelled, without classes.

        Args:
            first: float [pairs, dimension].
            second: float [pairs, dimension].
            same: float [pairs] in [0, 1]: 1 the same subject or meaning, 0 different, scores in
                between. In the figures a pair is genuine from 0.5 on. Multiple negatives take such
                pairs for anchors with their own; the second of the others are further negatives.
            members: int64 [pairs, 2], the items of each pair. With them multiple negatives take no
                candidate for a negative that is the anchor itself, or that a pair of the batch
                judges the same as the anchor; without, all items count as different.

        Raises:
            ConfigError: the config's loss is not one of pairs.
        """
        first, second, same = wide(first), wide(second), same.to(wide(first).dtype)
        genuine = same >= 0.5
        if self.config.loss == "multiple_negatives":
            candidates = torch.cat([second[genuine], second[~genuine]])
            excluded = None if members is None else _no_negatives(members, genuine)
            loss, active = self._multiple_negatives(first[genuine], candidates, excluded)
        else:
            loss, active = self._pairs(first, second, same)
        with torch.no_grad():
            distances = self.distance(first, second)
        return loss, _figures(loss, active, distances[genuine], distances[~genuine])

    def of_triplets(
        self, anchor: Tensor, positive: Tensor, negative: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, Figures]:
        """Measure triplets that came as such: float [triplets, dimension] each.

        Args:
            anchor: float [triplets, dimension].
            positive: likewise.
            negative: likewise.
            members: int64 [triplets, 3], the items of each; see `of_pairs`.

        Raises:
            ConfigError: the config's loss is neither the triplet loss nor one of pairs.
        """
        anchor, positive, negative = wide(anchor), wide(positive), wide(negative)
        if self.config.loss != "triplet":
            same = torch.ones(len(anchor), dtype=anchor.dtype, device=anchor.device)
            return self.of_pairs(
                torch.cat([anchor, anchor]),
                torch.cat([positive, negative]),
                torch.cat([same, torch.zeros_like(same)]),
                None if members is None else torch.cat([members[:, [0, 1]], members[:, [0, 2]]]),
            )
        loss, active = self._triplets(anchor, positive, negative)
        with torch.no_grad():
            genuine, impostor = self.distance(anchor, positive), self.distance(anchor, negative)
        return loss, _figures(loss, active, genuine, impostor)

    def _pairs_by(
        self, miner: str, distances: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Pairs:
        if miner == "random":
            return mining.random_pairs(labels, generator)
        return mining.pairs_of(mining.MINERS[miner](distances, labels, generator))

    def _pairs(self, first: Tensor, second: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and which pairs are active; same: float [pairs]."""
        config = self.config
        measured = self.head(first, second)
        if config.loss == "contrastive":
            near = measured < config.margin
            active = (same > 0) & (measured > 0) | (same < 1) & near
            return losses.contrastive(measured, same, config.margin), active
        if config.loss == "cosine_mse":
            targets = losses.cosine_targets(same, config.different_cosine)
            halfway = (1.0 - config.different_cosine) / 2.0
            return losses.mean_squared(measured, targets), (measured - targets).abs() > halfway
        if config.loss == "concatenation":
            called_same = measured[:, 1] > measured[:, 0]
            return losses.cross_entropy(measured, same), called_same != (same >= 0.5)
        raise ConfigError(
            f"loss={config.loss} takes items with classes, not pairs; for pairs set loss to "
            "contrastive, cosine_mse, concatenation or multiple_negatives"
        )

    def _triplets(
        self, anchor: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        near, far = self.distance(anchor, positive), self.distance(anchor, negative)
        margin = self.config.margin
        return losses.triplet(near, far, margin), margin + near - far > 0

    def _multiple_negatives(
        self, anchors: Tensor, candidates: Tensor, excluded: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        loss = losses.multiple_negatives(anchors, candidates, self.config.temperature, excluded)
        with torch.no_grad():
            cosines = unit(anchors) @ unit(candidates).T
            if excluded is not None:
                cosines = cosines.masked_fill(excluded, -torch.inf)
            own = cosines.diagonal()
            return loss, (cosines > own[:, None]).any(dim=1)


def _no_negatives(members: Tensor, genuine: Tensor) -> Tensor:
    """Tell which candidates are no negative of an anchor: bool [anchors, candidates].

    An item repeats in a batch where several pairs hold it: as the own candidate of two anchors, as
    one of two partners of an anchor, or as a candidate that is itself the anchor.

    Args:
        members: int64 [pairs, 2].
        genuine: bool [pairs]; their first items are the anchors. Candidates are the second items of
            genuine pairs, and then those of the others.
    """
    own = members[genuine]
    anchors = own[:, :1]
    candidates = torch.cat([own[:, 1], members[~genuine, 1]])
    items = members.max() + 1
    partners = torch.cat([own[:, 0] * items + own[:, 1], own[:, 1] * items + own[:, 0]])
    excluded = torch.isin(anchors * items + candidates, partners) | (anchors == candidates)
    excluded.fill_diagonal_(False)
    return excluded


def _rows(embeddings: Tensor, triplets: Triplets) -> tuple[Tensor, Tensor, Tensor]:
    return (
        embeddings[triplets.anchor],
        embeddings[triplets.positive],
        embeddings[triplets.negative],
    )


def _figures(loss: Tensor, active: Tensor, genuine: Tensor, impostor: Tensor) -> Figures:
    return Figures(
        loss=loss.item(),
        active=active.float().mean().item() if active.numel() else 0.0,
        genuine=genuine.mean().item(),
        impostor=impostor.mean().item(),
    )
