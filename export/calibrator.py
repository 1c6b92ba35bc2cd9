"""`twinserve calibrate`: thresholds for a twin file from evidence of the user's own.

In: a twin's file, and labelled data or judged pairs of classes that it has not seen. Out: the file
anew, its calibrations replaced and its graph untouched. The embeddings are made by onnxruntime
from that very graph, so that the thresholds belong to what will be served. Needs no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twinserve import manifest as manifests
from twinserve.distance import Embeddings, Metric
from twinserve.errors import ConfigError, DataError, ManifestError
from twinserve.export import overlap
from twinserve.export.calibrations import (
    DEFAULT_FAR,
    calibrations_for,
    calibrations_of_pairs,
    check_kinds,
    drawn_items,
)
from twinserve.export.evidence_text import shortfall
from twinserve.export.labelled import Columns, read_labelled
from twinserve.export.pairs import read_pairs
from twinserve.export.session import GraphSession, embed_all
from twinserve.feed import Rows
from twinserve.manifest import Calibration, Manifest, TextInput
from twinserve.tokens import Tokenizer
from twinserve.train.data import Labelled

Stage = Callable[[str], None]
Advance = Callable[[int, int], None]  # items done, of how many

# Items between two signs of progress; texts are sorted by length within, so not too few.
_CHUNK = 256


@dataclass(frozen=True)
class Wishes:
    """What the user asks of the evidence.

    Raises:
        ConfigError: a rate that is none.
    """

    rates: tuple[float, ...] = ()  # FARs that single pairs must carry, or nothing is written
    default_far: float | None = None  # used when a request has no rule
    same_above: float | None = None  # pairs from this score on are the same
    columns: Columns = field(default_factory=Columns)  # of labelled texts

    def __post_init__(self) -> None:
        asked = self.rates if self.default_far is None else (*self.rates, self.default_far)
        for rate in asked:
            if not 0.0 < rate < 1.0:
                raise ConfigError(
                    f"the rate is {rate}; give one between 0 and 1, such as 0.001", field="far"
                )


def calibrate_file(
    file: Path,
    *,
    data: Path | None = None,
    pairs: Path | None = None,
    out: Path | None = None,
    wishes: Wishes = Wishes(),
    threads: int | None = None,
    stage: Stage = lambda _: None,
    advance: Advance = lambda _done, _total: None,
) -> Manifest:
    """Set a twin's thresholds, and write the file whole or not at all.

    Args:
        file: the twin.
        data: labelled items, or
        pairs: judged pairs; exactly one of the two.
        out: where to write; None replaces the file.
        wishes: see there.
        threads: of onnxruntime; None leaves it to it.
        stage: is told of each stage in a few words.
        advance: is told how many items are embedded, of how many.

    Returns:
        The manifest in the new file.

    Raises:
        ManifestError: not a twin, or a damaged one.
        DataError: evidence that cannot be used, that the twin was trained on, or that does not
            carry a rate asked for.
        ConfigError: neither or both kinds of evidence.
    """
    if (data is None) == (pairs is None):
        raise ConfigError("give either --data or --pairs: labelled items, or judged pairs")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent} to write {out.name} into; make it")
    manifest = manifests.read(file)
    content = file.read_bytes()
    if manifests.digest_of_graph(content) != manifest.graph_digest:
        raise ManifestError(
            f"the graph in {file} is not the one that its manifest describes: the file is damaged "
            "or was edited; export or import it again"
        )
    tokenizer_json = manifests.read_tokenizer(file)
    tokenizer = None
    if isinstance(manifest.input, TextInput) and tokenizer_json is not None:
        tokenizer = Tokenizer(tokenizer_json, manifest.input)
    default_far = DEFAULT_FAR if wishes.default_far is None else wishes.default_far
    stage("reading the evidence")
    if pairs is not None:
        evidence = _of_pairs(manifest, tokenizer, pairs, wishes.same_above, default_far)
    elif data is not None:
        evidence = _of_labelled(manifest, tokenizer, data, wishes.columns, default_far)

    stage("embedding")
    session = GraphSession(content, manifest.input, threads)
    embeddings = _embedded(session, evidence.items.rows, advance)
    _check_embeddings(embeddings, evidence.items.names, manifest.metric)
    stage("calibrating")
    found = evidence.calibrations(embeddings)
    check_carried(found[0], wishes)
    others = [entry for entry in manifest.calibrations if entry.precision != manifest.precision]
    made = dataclasses.replace(
        manifest, calibrations=(*found, *others), training=_without_old_thresholds(manifest)
    )
    target = (file if out is None else out).resolve()  # a link's target, not the link
    manifests.write_atomically(target, manifests.attach(content, made, tokenizer_json))
    return Manifest.from_json(made.to_json())


def _without_old_thresholds(manifest: Manifest) -> dict[str, Any]:
    """Return `training` without how the replaced thresholds fared on the report classes."""
    training = dict(manifest.training)
    report = training.get("report")
    if isinstance(report, Mapping):
        kept = {key: value for key, value in report.items() if key != "at_the_thresholds"}
        training["report"] = kept
    return training


def check_carried(calibration: Calibration, wishes: Wishes) -> None:
    """Refuse a rate below the smallest that the evidence carries.

    Raises:
        DataError: with about how much it would take.
    """
    asked = wishes.rates if wishes.default_far is None else (*wishes.rates, wishes.default_far)
    for rate in asked:
        short = shortfall(calibration, rate)
        if short is not None:
            smallest = calibration.points[-1].false_accept_rate
            raise DataError(
                f"the evidence does not carry FAR {rate:g}: the smallest that it carries is "
                f"{smallest:.2g}. {short}; nothing was written",
                metadata={"smallest_far": f"{smallest:.6g}"},
            )


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What is to be embedded, and what its embeddings, float32 [items, dimension], then tell."""

    items: Labelled
    calibrations: Callable[[Embeddings], tuple[Calibration, ...]]


def _of_pairs(
    manifest: Manifest,
    tokenizer: Tokenizer | None,
    path: Path,
    same_above: float | None,
    default_far: float,
) -> _Evidence:
    judged = read_pairs(path, manifest.input, tokenizer, same_above=same_above)
    check_kinds(judged.same)
    # Held against the training set as items without classes: each is one of its own.
    items = Labelled(
        rows=judged.rows,
        labels=np.arange(len(judged.rows)),
        class_names=judged.names,
        names=judged.names,
    )
    overlap.check(manifest, items)

    def calibrations(embeddings: Embeddings) -> tuple[Calibration, ...]:
        return calibrations_of_pairs(
            judged.joined(embeddings),
            metric=manifest.metric,
            dimension=manifest.dimension,
            truncations=manifest.truncations,
            precision=manifest.precision,
            data_digest=judged.digest,
            default_far=default_far,
        )

    return _Evidence(items, calibrations)


def _of_labelled(
    manifest: Manifest,
    tokenizer: Tokenizer | None,
    path: Path,
    columns: Columns,
    default_far: float,
) -> _Evidence:
    labelled = read_labelled(path, manifest.input, tokenizer, columns)
    _check_labels(labelled, path)
    overlap.check(manifest, labelled)
    items = labelled.of_items(drawn_items(labelled.labels))

    def calibrations(embeddings: Embeddings) -> tuple[Calibration, ...]:
        return calibrations_for(
            embeddings,
            items.labels,
            metric=manifest.metric,
            dimension=manifest.dimension,
            truncations=manifest.truncations,
            precision=manifest.precision,
            data_digest=labelled.digest,
            evidence="labels",
            default_far=default_far,
        )

    return _Evidence(items, calibrations)


def _check_labels(labelled: Labelled, path: Path) -> None:
    """Refuse labels that give only one kind of pair, before anything is embedded."""
    classes, counts = np.unique(labelled.labels, return_counts=True)
    if len(classes) < 2:
        raise DataError(
            f"all {len(labelled)} items of {path} are of one class, "
            f"{labelled.class_names[int(classes[0])]!r:.60}, so there is no impostor pair; "
            "give items of several classes"
        )
    if counts.max() < 2:
        raise DataError(
            f"the {len(labelled)} items of {path} have {len(classes)} labels, no two the same, so "
            "there is no genuine pair; are the labels what they seem?"
        )


def _embedded(session: GraphSession, rows: Rows, advance: Advance) -> Embeddings:
    parts = []
    for start in range(0, len(rows), _CHUNK):
        parts.append(embed_all(session, rows[start : start + _CHUNK]))
        advance(min(start + _CHUNK, len(rows)), len(rows))
    return np.concatenate(parts)


def _check_embeddings(embeddings: Embeddings, names: Sequence[str], metric: Metric) -> None:
    """Name the item that the twin maps to what no metric can compare."""
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise DataError(
            f"the twin gives a NaN or an infinity for {names[bad[0]]!r:.80} "
            f"({len(bad)} of {len(embeddings)} items); it cannot be calibrated or served so"
        )
    zero = np.flatnonzero(~embeddings.any(axis=1))
    if metric is Metric.COSINE and len(zero):
        raise DataError(
            f"the twin maps {names[zero[0]]!r:.80} to zero, which has no direction under cosine "
            f"({len(zero)} of {len(embeddings)} items); is it blank? Take it out"
        )
