"""How good a twin is on classes that it never saw.

In: embeddings and labels of held-out classes. Out: a `Report` (EER, TAR@FAR, N-way one-shot with
its interval), and the one-shot trials themselves, so that the torch twin, the exported one and a
running server answer the very same questions. Rates come from twinserve.calibration, which also
sets the thresholds: there is one way to count a false accept.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinserve.calibration import (
    MIN_FALSE_ACCEPTS,
    equal_error_rate,
    pair_distances,
    true_accept_rate_at,
)
from twinserve.distance import Embeddings, Metric, pairwise
from twinserve.errors import DataError
from twinserve.feed import Rows, feed
from twinserve.manifest import InputContract, TextInput
from twinserve.train.data import take
from twinserve.train.intervals import wilson_interval
from twinserve.train.twins import Twin

IntArray = NDArray[np.int64]

RATES = (0.1, 0.01, 0.001)
BATCH_SIZE = 512
ENCODER_BATCH_SIZE = 32
# All pairs of a set are measured; above so many items that no longer fits, and a seeded draw of
# them is measured instead.
MAX_ITEMS = 4000


@dataclass(frozen=True)
class Trials:
    """N-way one-shot questions, by index into a labelled set: which support is of its class?"""

    support: IntArray  # [trials, ways], one item per class
    probe: IntArray  # [trials]
    answer: IntArray  # [trials], the column of `support` that shares the probe's class

    def __len__(self) -> int:
        return len(self.probe)


@dataclass(frozen=True)
class OneShot:
    """The outcome of N-way one-shot trials."""

    accuracy: float
    ways: int
    trials: int
    # 95 % interval of Wilson over trials. Trials share classes and items, so that the spread over
    # fresh classes is wider than it says.
    low: float
    high: float


@dataclass(frozen=True)
class AcceptRate:
    """TAR at the largest threshold whose FAR is at most the rate named."""

    false_accept_rate: float
    true_accept_rate: float


@dataclass(frozen=True)
class Report:
    """What was measured on one part of the split."""

    metric: str
    classes: int
    items: int
    genuine_pairs: int
    impostor_pairs: int
    equal_error_rate: float
    # A rate with fewer than `calibration.MIN_FALSE_ACCEPTS` impostor pairs behind it is absent.
    true_accept_rates: tuple[AcceptRate, ...]
    one_shot: OneShot

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as report.json holds them."""
        return dataclasses.asdict(self)


def embed(twin: Twin, rows: Rows, batch_size: int | None = None) -> Embeddings:
    """Embed rows of the twin's modality in eval mode: [n] rows -> float32 [n, dimension].

    Texts run beside others of their length, so that little is spent on padding.

    Args:
        twin: of any modality.
        rows: of its modality.
        batch_size: rows at a time; when not given, fewer for encoders, whose states take memory.
    """
    if batch_size is None:
        batch_size = BATCH_SIZE if twin.blueprint is None else ENCODER_BATCH_SIZE
    order = np.arange(len(rows))
    if isinstance(twin.contract, TextInput):
        order = np.argsort([len(row) for row in rows], kind="stable")
    embeddings = np.empty((len(rows), twin.dimension), dtype=np.float32)
    training, device = twin.training, device_of(twin)
    twin.eval()
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            items = order[start : start + batch_size]
            inputs = tensors(take(rows, items), twin.contract)
            embeddings[items] = twin(*(one.to(device) for one in inputs)).cpu().numpy()
    twin.train(training)
    return embeddings


def device_of(twin: Twin) -> torch.device:
    """Return where a twin's weights are."""
    return next((weight.device for weight in twin.parameters()), torch.device("cpu"))


def tensors(rows: Rows, contract: InputContract) -> tuple[Tensor, ...]:
    """Lay rows out as the tensors that a twin takes, in order."""
    return tuple(torch.from_numpy(array) for array in feed(rows, contract).values())


def evaluate(
    embeddings: Embeddings,
    labels: IntArray,
    groups: IntArray | None,
    metric: Metric,
    *,
    ways: int = 20,
    trials: int = 1000,
    seed: int = 0,
) -> Report:
    """Measure verification over all pairs, and identification over one-shot trials.

    Args:
        embeddings: float32 [n, dimension].
        labels: [n], the class of each.
        groups: [n], the group of each, equal within a class; None for no groups.
        metric: under which they are compared.
        ways: classes per one-shot trial; fewer where no group has so many.
        trials: how many.
        seed: draws the trials, and the items above `MAX_ITEMS`.

    Raises:
        DataError: no genuine or no impostor pair.
    """
    chosen = measured_items(len(labels), seed)
    embeddings, labels = embeddings[chosen], labels[chosen]
    groups = None if groups is None else groups[chosen]
    pairs = pair_distances(embeddings, labels, metric)
    if most_ways(labels, groups) < 2:
        groups = None  # a group per class leaves nothing to choose between
    ways = min(ways, most_ways(labels, groups))
    questions = one_shot_trials(labels, ways=ways, trials=trials, seed=seed, groups=groups)
    return Report(
        metric=metric.value,
        classes=len(np.unique(labels)),
        items=len(labels),
        genuine_pairs=len(pairs.genuine),
        impostor_pairs=len(pairs.impostor),
        equal_error_rate=equal_error_rate(pairs.genuine, pairs.impostor),
        true_accept_rates=tuple(
            AcceptRate(rate, true_accept_rate_at(pairs.genuine, pairs.impostor, rate))
            for rate in RATES
            if rate * len(pairs.impostor) >= MIN_FALSE_ACCEPTS
        ),
        one_shot=_one_shot(embeddings, questions, metric),
    )


def measured_items(count: int, seed: int) -> IntArray:
    """Return the items whose pairs are measured: all, or a draw of `MAX_ITEMS`: int64 [k]."""
    if count <= MAX_ITEMS:
        return np.arange(count)
    return np.random.default_rng(seed).permutation(count)[:MAX_ITEMS]


def one_shot_trials(
    labels: IntArray,
    ways: int = 20,
    trials: int = 400,
    seed: int = 0,
    groups: IntArray | None = None,
) -> Trials:
    """Draw N-way one-shot trials (Lake et al., 2015: within one alphabet).

    A trial draws `ways` classes of one group, one item of each as its support, and as probe another
    item of one of them: in Omniglot, where each drawer drew each character once, the same character
    by another hand. The classes of the probes go round, so that each is asked for equally often.

    Args:
        labels: [n], the class of each item.
        ways: classes per trial.
        trials: how many.
        seed: equal seeds give equal trials for equal labels.
        groups: [n], equal within a class; None draws from all classes.

    Raises:
        DataError: no group has so many classes, or no class of them two items.
    """
    generator = np.random.default_rng(seed)
    classes, first = np.unique(labels, return_index=True)
    members = {label: np.flatnonzero(labels == label) for label in classes.tolist()}
    class_groups = np.zeros(len(classes), dtype=np.int64) if groups is None else groups[first]
    rivals = {
        label: classes[(class_groups == group) & (classes != label)]
        for label, group in zip(classes.tolist(), class_groups.tolist(), strict=True)
    }
    askable = [label for label, own in members.items() if len(own) >= 2]
    askable = [label for label in askable if len(rivals[label]) >= ways - 1]
    if not askable or ways < 2:
        raise DataError(
            f"{ways}-way one-shot trials need {max(ways, 2)} classes in a group and two items of "
            f"a class; the largest group here has {most_ways(labels, groups)} classes"
        )
    order = np.concatenate(
        [generator.permutation(askable) for _ in range(math.ceil(trials / len(askable)))]
    )[:trials]
    support = np.empty((trials, ways), dtype=np.int64)
    probe = np.empty(trials, dtype=np.int64)
    answer = generator.integers(ways, size=trials)
    for index, label in enumerate(order.tolist()):
        own, probe[index] = generator.choice(members[label], size=2, replace=False)
        others = generator.choice(rivals[label], size=ways - 1, replace=False)
        row = [generator.choice(members[other]) for other in others.tolist()]
        row.insert(int(answer[index]), own)
        support[index] = row
    return Trials(support=support, probe=probe, answer=answer)


def one_shot_accuracy(embeddings: Embeddings, trials: Trials, metric: Metric) -> float:
    """Return the share of trials whose nearest support is the answer.

    Args:
        embeddings: float32 [n, dimension] of the set that the trials index; flattened pixels will
            do, see `pixel_vectors`.
        trials: of `one_shot_trials`.
        metric: under which the nearest is sought; of equally near ones the first is taken.
    """
    distances = pairwise(embeddings, embeddings, metric)
    nearest = distances[trials.probe[:, None], trials.support].argmin(axis=1)
    return float(np.mean(nearest == trials.answer))


def pixel_vectors(pixels: Rows) -> Embeddings:
    """Flatten pixels, for the baseline of 1-nearest-neighbour: uint8 [n, ...] -> float32 [n, d]."""
    return np.asarray(pixels).reshape(len(pixels), -1).astype(np.float32) / 255.0


def bags_of_words(rows: Rows) -> Embeddings:
    """Count each text's tokens, rare ones for more (TF-IDF), as the baseline without a twin.

    Args:
        rows: int64 [tokens] of each text.

    Returns:
        float32 [n, distinct tokens].
    """
    known, columns = np.unique(np.concatenate(list(rows)), return_inverse=True)
    counts = np.zeros((len(rows), len(known)), dtype=np.float32)
    np.add.at(counts, (np.repeat(np.arange(len(rows)), [len(row) for row in rows]), columns), 1.0)
    rarity = np.log((1 + len(rows)) / (1 + (counts > 0).sum(axis=0))) + 1.0
    weighted: Embeddings = counts * rarity.astype(np.float32)
    return weighted


def _one_shot(embeddings: Embeddings, trials: Trials, metric: Metric) -> OneShot:
    accuracy = one_shot_accuracy(embeddings, trials, metric)
    low, high = wilson_interval(round(accuracy * len(trials)), len(trials))
    return OneShot(accuracy, trials.support.shape[1], len(trials), low, high)


def most_ways(labels: IntArray, groups: IntArray | None) -> int:
    """Return how many classes the largest group has; without groups, all of them."""
    if groups is None:
        return len(np.unique(labels))
    return max(len(np.unique(labels[groups == group])) for group in np.unique(groups))
