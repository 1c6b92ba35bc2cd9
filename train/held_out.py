"""All that is measured on held-out data, as evaluation.json holds it.

In: embeddings and labels of classes that the twin never saw, or such pairs as somebody judged. Out:
of classes verification, retrieval and N-way k-shot identification, of pairs verification or rank
correlation, with their intervals. What the data cannot give is absent: one class has no impostor
pair, and classes of one item have nothing to find.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import pair_distances
from twinserve.distance import Embeddings, FloatArray, Metric, check_vectors, paired
from twinserve.errors import DataError
from twinserve.manifest import write_atomically
from twinserve.train.change import Change
from twinserve.train.correlation import Correlation, spearman_of_pairs
from twinserve.train.evaluate import RATES, IntArray, measured_items
from twinserve.train.few_shot import FewShot, few_shot
from twinserve.train.intervals import RESAMPLES, Estimate, mean_over_classes
from twinserve.train.judged import judged_distances, kind_of_judgements, partners_found, sides
from twinserve.train.pairs import PairData, TripletData
from twinserve.train.retrieval import Retrieval, retrieval
from twinserve.train.verification import Verification, verification

FILE = "evaluation.json"
FORMAT = 1


@dataclass(frozen=True)
class HeldOut:
    """What was measured on one set of classes, or of judged pairs."""

    metric: str
    classes: int  # of judged pairs: sets of pairs that share no item
    items: int
    verification: Verification | None  # None without genuine or without impostor pairs
    retrieval: Retrieval | None  # None where no class has two items
    few_shot: tuple[FewShot, ...]
    judged_pairs: int = 0  # 0 where classes were measured
    correlation: Correlation | None = None  # of judged pairs with scores
    triplets: int = 0  # each counts as two judged pairs too
    right_order: Estimate | None = None  # share of triplets with the positive nearer
    recall_of_partners: Estimate | None = None  # recall@1, of pairs that are all the same
    changes: tuple[Change, ...] = ()  # against the twin as it came, where it was made elsewhere

    @staticmethod
    def from_dict(values: dict[str, Any]) -> HeldOut:
        """Take back what `dataclasses.asdict` gave, or what JSON made of it."""
        verified, retrieved = values["verification"], values["retrieval"]
        correlated = values["correlation"]
        return HeldOut(
            metric=values["metric"],
            classes=values["classes"],
            items=values["items"],
            verification=None if verified is None else Verification.from_dict(verified),
            retrieval=None if retrieved is None else Retrieval.from_dict(retrieved),
            few_shot=tuple(map(FewShot.from_dict, values["few_shot"])),
            judged_pairs=values["judged_pairs"],
            correlation=None if correlated is None else Correlation.from_dict(correlated),
            # Evaluations of earlier versions lack what follows.
            triplets=values.get("triplets", 0),
            right_order=_estimate(values.get("right_order")),
            recall_of_partners=_estimate(values.get("recall_of_partners")),
            changes=tuple(map(Change.from_dict, values.get("changes", ()))),
        )

    def save(self, folder: Path) -> Path:
        """Write evaluation.json into a run folder, whole or not at all, and return its path."""
        document = {"format": FORMAT, **dataclasses.asdict(self)}
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(folder / FILE, text.encode())
        return folder / FILE

    @staticmethod
    def load(folder: Path) -> HeldOut:
        """Read the evaluation.json of a run folder.

        Raises:
            FileNotFoundError: there is none; runs of earlier versions have none.
            DataError: a damaged one, or one of a newer format.
        """
        path = folder / FILE
        try:
            document = json.loads(path.read_bytes())
            if document.pop("format") > FORMAT:
                raise DataError(f"{path} is of a newer twinserve than this one; upgrade twinserve")
            return HeldOut.from_dict(document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is damaged; `twinserve report {folder} --again` writes it anew"
            ) from error


def _estimate(values: dict[str, Any] | None) -> Estimate | None:
    return None if values is None else Estimate.from_dict(values)


def measure(
    embeddings: Embeddings,
    labels: IntArray,
    groups: IntArray | None,
    metric: Metric,
    *,
    rates: Sequence[float] = RATES,
    ways: int = 20,
    trials: int = 1000,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> HeldOut:
    """Measure everything on one set of classes.

    Verification and k-shot trials are of the items that `evaluate` measures, so that the figures
    agree; retrieval is over all.

    Args:
        embeddings: float32 [n, dimension].
        labels: int64 [n], the class of each.
        groups: int64 [n], the group of each, equal within a class; None for no groups.
        metric: under which they are compared.
        rates: FARs at which TAR is wanted.
        ways: classes of an N-way trial; fewer where no group has so many.
        trials: N-way trials of each of three seeds.
        seed: the first of them, and of all other draws.
        resamples: draws of classes behind the intervals.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    chosen = measured_items(len(labels), seed)
    count = np.unique(labels[chosen], return_counts=True)[1]
    verified = None
    if len(count) > 1 and count.max() > 1:
        pairs = pair_distances(embeddings[chosen], labels[chosen], metric)
        verified = verification(pairs, rates, resamples, seed)
    return HeldOut(
        metric=metric.value,
        classes=len(np.unique(labels)),
        items=len(labels),
        verification=verified,
        retrieval=retrieval(embeddings, labels, metric, resamples=resamples, seed=seed),
        few_shot=few_shot(
            embeddings[chosen],
            labels[chosen],
            None if groups is None else groups[chosen],
            metric,
            ways=ways,
            trials=trials,
            seeds=(seed, seed + 1, seed + 2),
        ),
    )


def measure_pairs(
    embeddings: Embeddings,
    members: IntArray,
    targets: FloatArray,
    components: IntArray,
    metric: Metric,
    *,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> HeldOut:
    """Measure judged pairs: verification where all are the same or not, else rank correlation.

    Args:
        embeddings: float32 [n, dimension], of distinct items.
        members: int64 [pairs, 2], the items of each pair.
        targets: float [pairs], from 0 (different) to 1 (the same).
        components: int64 [n], equal for items that pairs connect, over however many others: what is
            drawn together in a resample.
        metric: under which they are compared.
        rates: FARs at which TAR is wanted.
        seed: of all draws.
        resamples: draws of components, or of pairs, behind the intervals.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    check_vectors(embeddings, metric)
    targets = np.asarray(targets, dtype=np.float64)
    distances = paired(embeddings[members[:, 0]], embeddings[members[:, 1]], metric)
    verified = correlated = None
    if not np.isin(targets, (0.0, 1.0)).all():
        if np.ptp(distances) > 0 and np.ptp(targets) > 0:
            found = spearman_of_pairs(distances, targets, resamples, seed)
            correlated = Correlation(len(members), found)
    elif 0 < targets.sum() < len(targets):
        verified = verification(
            judged_distances(distances, members, targets, components), rates, resamples, seed
        )
    return HeldOut(
        metric=metric.value,
        classes=len(np.unique(components[members])),
        items=len(np.unique(members)),
        verification=verified,
        retrieval=None,
        few_shot=(),
        judged_pairs=len(members),
        correlation=correlated,
    )


def measure_links(
    embeddings: Embeddings,
    data: PairData | TripletData,
    metric: Metric,
    *,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> HeldOut:
    """Measure judged pairs or triplets; of a triplet (anchor, positive) counts as the same.

    The arguments are those of `measure_pairs`, with the items of `data` for its embeddings.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    pairs = data.pairs if isinstance(data, TripletData) else data
    measured = measure_pairs(
        embeddings,
        pairs.members,
        pairs.targets.astype(np.float64),
        pairs.components,
        metric,
        rates=rates,
        seed=seed,
        resamples=resamples,
    )
    component = data.components[data.members[:, 0]]

    def share(right: NDArray[np.bool_]) -> Estimate:
        return mean_over_classes(right.astype(np.float64), component, resamples, seed)

    if isinstance(data, TripletData):
        near, far = sides(embeddings, data, metric)
        return dataclasses.replace(measured, triplets=len(data), right_order=share(near < far))
    if kind_of_judgements(data) == "same":
        found = share(partners_found(embeddings, data, metric))
        return dataclasses.replace(measured, recall_of_partners=found)
    return measured
