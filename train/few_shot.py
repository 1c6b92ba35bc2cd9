"""N-way k-shot identification: which of N classes, of which k items each are known, is this?

In: embeddings and labels of held-out classes. Out: the share of right answers, by the nearest mean
of a class (prototypes, Snell et al., 2017) and by the nearest single item, over several seeds. One
shot is asked by the trials of `evaluate.one_shot_trials`, which torch, the exported twin and a
server answer too.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings, FloatArray, Metric, check_vectors, paired, unit
from twinserve.errors import DataError
from twinserve.train.evaluate import IntArray, most_ways, one_shot_trials
from twinserve.train.intervals import Estimate, share

# Numbers of float64 that a block of trials may hold: 32 MiB.
_BLOCK = 1 << 22


class Rule(enum.StrEnum):
    """By what the nearest class is found."""

    MEAN = "nearest class mean"
    ITEM = "nearest item"


@dataclass(frozen=True)
class Questions:
    """N-way k-shot trials, by index into a labelled set."""

    support: IntArray  # [trials, ways, shots], k items of one class each
    probe: IntArray  # [trials], in none of the supports of its trial
    answer: IntArray  # [trials], the way that shares the probe's class


@dataclass(frozen=True)
class FewShot:
    """The outcome of N-way k-shot trials over several seeds."""

    ways: int
    shots: int
    rule: str
    trials: int  # of all seeds together
    # Wilson's interval over all trials. They share classes and items, so that the spread over fresh
    # classes is wider.
    accuracy: Estimate
    by_seed: tuple[float, ...]

    @staticmethod
    def from_dict(values: dict[str, Any]) -> FewShot:
        """Take back what `dataclasses.asdict` gave, or what JSON made of it."""
        changed = {
            "accuracy": Estimate.from_dict(values["accuracy"]),
            "by_seed": tuple(values["by_seed"]),
        }
        return FewShot(**{**values, **changed})


def few_shot(
    embeddings: Embeddings,
    labels: IntArray,
    groups: IntArray | None,
    metric: Metric,
    *,
    ways: int = 20,
    shots: Sequence[int] = (1, 5),
    trials: int = 1000,
    seeds: Sequence[int] = (0, 1, 2),
) -> tuple[FewShot, ...]:
    """Ask N-way k-shot questions; a number of shots that the classes cannot give is left out.

    Args:
        embeddings: float32 [n, dimension].
        labels: int64 [n], the class of each.
        groups: int64 [n], the group of each, equal within a class; None for no groups.
        metric: under which they are compared.
        ways: classes per trial; fewer where no group has so many.
        shots: k, each asked for by itself.
        trials: of each seed.
        seeds: the first one's one-shot trials are those of `evaluate`.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    check_vectors(embeddings, metric)
    found = []
    for k in shots:
        questions = questions_of(labels, groups, ways=ways, shots=k, trials=trials, seeds=seeds)
        if not questions:
            continue
        for rule in Rule if k > 1 else (Rule.ITEM,):
            right = [answers(embeddings, one, metric, rule) for one in questions]
            counts = [int(one.sum()) for one in right]
            found.append(
                FewShot(
                    ways=questions[0].support.shape[1],
                    shots=k,
                    rule=rule.value,
                    trials=trials * len(seeds),
                    accuracy=share(sum(counts), trials * len(seeds)),
                    by_seed=tuple(count / trials for count in counts),
                )
            )
    return tuple(found)


def questions_of(
    labels: IntArray,
    groups: IntArray | None,
    *,
    ways: int,
    shots: int,
    trials: int,
    seeds: Sequence[int],
) -> tuple[Questions, ...]:
    """Draw the trials of each seed, among the classes that have k items; see `few_shot`.

    Returns:
        Trials by index into the labels; none at all where the classes cannot give them.
    """
    _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    enough = np.flatnonzero(count[place] >= shots)
    if not len(enough):
        return ()
    some = labels[enough]
    grouped = None if groups is None else groups[enough]
    if grouped is not None and most_ways(some, grouped) < 2:
        grouped = None  # a group per class leaves nothing to choose between
    asked = min(ways, most_ways(some, grouped))
    try:
        drawn = [few_shot_trials(some, asked, shots, trials, seed, grouped) for seed in seeds]
    except DataError:
        return ()
    return tuple(Questions(enough[one.support], enough[one.probe], one.answer) for one in drawn)


def few_shot_trials(
    labels: IntArray,
    ways: int,
    shots: int,
    trials: int,
    seed: int = 0,
    groups: IntArray | None = None,
) -> Questions:
    """Draw N-way k-shot trials: `ways` classes of one group, k items of each, and another item.

    The classes of the probes go round, so that each is asked for equally often.

    Args:
        labels: int64 [n], the class of each item.
        ways: classes per trial.
        shots: items per class.
        trials: how many.
        seed: equal seeds give equal trials for equal labels.
        groups: int64 [n], equal within a class; None draws from all classes.

    Raises:
        DataError: no group has so many classes of k items, or none of them one item more.
    """
    if shots == 1:
        single = one_shot_trials(labels, ways, trials, seed, groups)
        return Questions(single.support[:, :, None], single.probe, single.answer)
    generator = np.random.default_rng(seed)
    classes, first, place, count = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    members = np.argsort(place, kind="stable")  # class by class
    start = np.cumsum(count) - count
    class_groups = np.zeros(len(classes), dtype=np.int64) if groups is None else groups[first]
    full = count >= shots
    rivals = [np.flatnonzero(full & (class_groups == group)) for group in class_groups]
    askable = [
        index
        for index in np.flatnonzero(count > shots).tolist()
        if len(rivals[index]) >= ways  # itself among them
    ]
    if not askable or ways < 2:
        raise DataError(
            f"{ways}-way {shots}-shot trials need {max(ways, 2)} classes of {shots} items in a "
            f"group, and {shots + 1} items of one of them; ask for fewer ways or shots"
        )
    rounds = -(-trials // len(askable))
    asked = np.concatenate([generator.permutation(askable) for _ in range(rounds)])[:trials]
    answer = generator.integers(ways, size=trials)
    chosen = np.empty((trials, ways), dtype=np.int64)  # classes
    for index in askable:
        rows = np.flatnonzero(asked == index)
        others = rivals[index][rivals[index] != index]
        drawn = distinct(generator, np.full(len(rows), len(others)), ways - 1)
        chosen[rows] = np.insert(others[drawn], 0, index, axis=1)
    # The class of the probe stands first until now, and changes places with the answer's way.
    row = np.arange(trials)
    chosen[row, 0], chosen[row, answer] = chosen[row, answer], chosen[row, 0]
    support = members[start[chosen][:, :, None] + distinct(generator, count[chosen], shots)]
    own = distinct(generator, count[asked], shots + 1)  # the last one is the probe
    support[row, answer] = members[start[asked][:, None] + own[:, :shots]]
    return Questions(support, members[start[asked] + own[:, shots]], answer)


def answers(
    embeddings: Embeddings, questions: Questions, metric: Metric, rule: Rule
) -> NDArray[np.bool_]:
    """Tell of each trial whether the nearest class is the right one: [trials].

    Means are of unit vectors under cosine. Of equally near classes the first is taken.
    """
    trials, ways, shots = questions.support.shape
    right = np.empty(trials, dtype=bool)
    step = max(1, _BLOCK // (ways * shots * embeddings.shape[1]))
    for begin in range(0, trials, step):
        block = slice(begin, begin + step)
        known = embeddings[questions.support[block]].astype(np.float64)  # [b, ways, shots, d]
        probe = embeddings[questions.probe[block]].astype(np.float64)
        distances: FloatArray
        if rule is Rule.MEAN:
            means = (unit(known) if metric is Metric.COSINE else known).mean(axis=2)
            distances = _paired(means, probe[:, None], metric)  # [b, ways]
        else:
            distances = _paired(known, probe[:, None, None], metric).min(axis=2)
        right[block] = distances.argmin(axis=1) == questions.answer[block]
    return right


def distinct(generator: np.random.Generator, counts: IntArray, k: int) -> IntArray:
    """Draw k different whole numbers below each count: int64 [...] -> [..., k].

    No count may be below k. Every choice and order is equally likely.
    """
    drawn = np.empty((*counts.shape, k), dtype=np.int64)
    for index in range(k):
        number = (generator.random(counts.shape) * (counts - index)).astype(np.int64)
        # It counts among those not drawn yet: step over each that was, from the smallest on.
        for earlier in np.moveaxis(np.sort(drawn[..., :index], axis=-1), -1, 0):
            number += number >= earlier
        drawn[..., index] = number
    return drawn


def _paired(first: FloatArray, second: FloatArray, metric: Metric) -> FloatArray:
    return paired(first, second, metric)  # type: ignore[arg-type]  # it widens to float64 itself
