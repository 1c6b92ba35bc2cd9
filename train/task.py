"""What the loop asks of its data, whichever form they have.

In: a config. Out: its material, and a `Task`: the items of the training part, and batches of them.
Whether the loss takes such data is checked before anything is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from twinserve.train import own
from twinserve.train.config import TrainConfig
from twinserve.train.data import Batch, Batches, Labelled
from twinserve.train.faults import Faults
from twinserve.train.forms import check_loss, check_twin, kind_of
from twinserve.train.material import LinkMaterial, Material, prepare, prepare_links
from twinserve.train.pairs import LinkBatch, LinkBatches


class Batched(Protocol):
    """Batches, each a function of the seed and the step alone."""

    def __getitem__(self, step: int) -> Batch | LinkBatch: ...


@dataclass(frozen=True)
class Task:
    """Data that a twin is to be trained on."""

    training: Labelled  # items of the training part; of pairs and triplets without their classes
    batches: Batched  # of them
    classes: int = 0  # labels of a batch are below it; 0 where batches have none


def read(config: TrainConfig, faults: Faults) -> Material | LinkMaterial:
    """Read and split a config's data.

    Args:
        config: names the data.
        faults: learns of what was left out, up to the config's limits.

    Raises:
        ConfigError: a twin, a loss or other settings that do not take such data.
        DataError: data that cannot be read or split.
    """
    kind = kind_of(config)
    check_twin(kind, config)
    check_loss(kind, config)
    if config.is_own:
        # Before the data are read; and a checkpoint of this twin may then be opened.
        own.ask(config.twin)
    return prepare(config, faults) if kind.form == "labelled" else prepare_links(config, faults)


def task_of(material: Material | LinkMaterial, config: TrainConfig) -> Task:
    """Return the training part of some material, in batches.

    Raises:
        DataError: batches that cannot be drawn.
    """
    if isinstance(material, LinkMaterial):
        links = material.data.of_rows(material.splits.train)
        drawn = LinkBatches(
            links,
            size=config.pairs_per_batch,
            balanced=config.balanced_pairs,
            seed=config.seed,
        )
        return Task(links.items, drawn)
    training = material.labelled.of_classes(material.splits.train)
    batches = Batches(
        training,
        classes_per_batch=config.classes_per_batch,
        items_per_class=config.items_per_class,
        rotations=config.rotations,
        one_group_share=config.one_group_share,
        turns_groups=config.turns_groups,
        seed=config.seed,
    )
    return Task(training, batches, batches.classes)
