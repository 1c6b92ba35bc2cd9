"""Which bound keeps its word? Ours against the textbook ones, on random splits of real classes.

    .venv/bin/python benchmarks/bounds.py --vectors omniglot.npz --vectors banking77.npz

Each file holds `vectors` [n, d] of classes that the embedding was not trained on, and `labels` [n].
Verification: half of some classes calibrate, the others are new; the bound on a false accept rate
is our two-draw bootstrap over classes, or the plain 95th percentile of one. Search: a gallery of
some classes, strangers from the others; the bound on the rate of strangers found is our jackknife
over subjects, or Wilson's binomial one, for which probes are independent. Prints how often the new
classes stayed under each, and how wide it was (bound over rate). Vectors are compared by cosine.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import PairDistances, calibrate, pair_distances
from twinserve.distance import Metric, pairwise
from twinserve.identification import Impostors, at_rate

FARS = (0.1, 0.03, 0.01, 0.003, 0.001)
FPIRS = (0.3, 0.1, 0.05, 0.03)
Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


def main() -> int:
    """Measure every file, verification and search."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vectors", type=Path, action="append", required=True, metavar="NPZ")
    parser.add_argument("--splits", type=int, default=40)
    parser.add_argument("--classes", type=int, default=30, help="that calibrate (%(default)s)")
    parser.add_argument("--each", type=int, default=10, help="items of a class (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/bounds.jsonl"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in arguments.vectors:
        with np.load(path) as file:
            vectors, labels = file["vectors"].astype(np.float32), file["labels"].astype(np.int64)
        for split in range(arguments.splits):
            generator = np.random.default_rng(split)
            classes = generator.permutation(np.unique(labels))
            count = min(arguments.classes, len(classes) // 2)
            known = drawn(labels, classes[:count], arguments.each, generator)
            fresh = drawn(labels, classes[count : 3 * count], arguments.each, generator)
            name = path.stem
            rows += verification(name, vectors, labels, known, fresh, split)
            rows += search(name, vectors, labels, known, fresh)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    with arguments.json.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    show(rows)
    return 0


def drawn(
    labels: Labels, classes: Labels, each: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw so many items of each class."""
    members = (np.flatnonzero(labels == label) for label in classes.tolist())
    return np.concatenate([generator.permutation(own)[:each] for own in members])


def verification(
    name: str,
    vectors: Vectors,
    labels: Labels,
    known: NDArray[np.int64],
    fresh: NDArray[np.int64],
    seed: int,
) -> list[dict[str, Any]]:
    """Set thresholds on known classes, count on new ones."""
    pairs = pair_distances(vectors[known], labels[known], Metric.COSINE)
    unseen = pair_distances(vectors[fresh], labels[fresh], Metric.COSINE).impostor
    found = calibrate(
        pairs, precision="fp32", dimension=vectors.shape[1], metric=Metric.COSINE, seed=seed
    )
    rows = []
    for rate in FARS:
        near = [p for p in found.points if 0.8 * rate <= p.false_accept_rate <= rate * (1 + 1e-9)]
        if not near:
            continue
        point = near[0]
        realised = float(np.mean(unseen <= point.threshold))
        plain = percentile(pairs, point.threshold, seed)
        for bound, value in (
            ("two draws", point.false_accept_rate_upper),
            ("percentile", max(plain, point.false_accept_rate)),
        ):
            rows.append(
                row(name, "FAR", rate, bound, realised, value, value / point.false_accept_rate)
            )
    return rows


def percentile(pairs: PairDistances, threshold: float, seed: int) -> float:
    """95th percentile of the rate over draws of whole classes."""
    classes, place = np.unique(pairs.impostor_classes, return_inverse=True)
    first, second = place.reshape(-1, 2).T
    accepted = pairs.impostor <= threshold
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(200):
        times = np.bincount(
            generator.integers(0, len(classes), len(classes)), minlength=len(classes)
        )
        weight = times[first] * times[second]
        rates.append(float(weight[accepted].sum() / max(weight.sum(), 1)))
    return float(np.quantile(rates, 0.95))


def search(
    name: str,
    vectors: Vectors,
    labels: Labels,
    known: NDArray[np.int64],
    fresh: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """Enrol known classes, ask by new ones."""
    own = labels[known]
    subjects = np.unique(own)
    between = pairwise(vectors[known], vectors[known], Metric.COSINE)
    to_subject = np.stack([between[:, own == s].min(axis=1) for s in subjects], axis=1)
    to_subject[subjects[None, :] == own[:, None]] = np.inf
    order = np.argsort(to_subject, axis=1)[:, :4]
    impostors = Impostors(
        subject=own,
        distance=np.take_along_axis(to_subject, order, axis=1),
        other=subjects[order],
        subjects=len(subjects),
        items=len(known),
    )
    strangers = pairwise(vectors[fresh], vectors[known], Metric.COSINE).min(axis=1)
    rows = []
    for rate in FPIRS:
        found = at_rate(impostors, rate)
        if found is None:
            continue
        realised = float(np.mean(strangers <= found.threshold))
        for bound, value in (
            ("jackknife", found.rate_upper),
            ("binomial", binomial(found.rate, len(known))),
        ):
            rows.append(row(name, "FPIR", rate, bound, realised, value, value / found.rate))
    return rows


def binomial(share: float, count: int) -> float:
    """One-sided 95 % bound of a share of independent events (Wilson, 1927)."""
    z = 1.6448536269514722
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle + spread) / (1 + z * z / count)


def row(
    name: str, kind: str, rate: float, bound: str, realised: float, stated: float, width: float
) -> dict[str, Any]:
    """One split's answer for one bound."""
    return {
        "data": name,
        "kind": kind,
        "rate": rate,
        "bound": bound,
        "realised": realised,
        "stated": stated,
        "width": width,
        "kept": realised <= stated,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table: per data, rate and bound the share of splits that it kept, and its width."""
    print("| data | rate | bound | splits | kept | bound / rate, median |")
    print("|---|---:|---|---:|---:|---:|")
    keys = sorted({(r["data"], r["kind"], -r["rate"], r["bound"]) for r in rows})
    for data, kind, minus, bound in keys:
        own = [
            r
            for r in rows
            if (r["data"], r["kind"], r["rate"], r["bound"]) == (data, kind, -minus, bound)
        ]
        kept = np.mean([r["kept"] for r in own])
        width = np.median([r["width"] for r in own])
        print(f"| {data} | {kind} {-minus:g} | {bound} | {len(own)} | {kept:.0%} | {width:.1f} |")


if __name__ == "__main__":
    sys.exit(main())
