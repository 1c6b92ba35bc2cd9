"""The fp32 graph on its evidence: what it makes of the rows, and the thresholds that come of it.

In: the graph's session, facts and evidence. Out: the `Reference` that candidates in other
precisions are held against, with the way to set thresholds on their own embeddings.
"""

from __future__ import annotations

from typing import Any

from twinserve.calibration import PairDistances, pair_distances
from twinserve.distance import Embeddings
from twinserve.errors import DataError
from twinserve.export.calibrations import (
    JudgedPairs,
    calibrations_for,
    calibrations_of_pairs,
    judged_distances,
)
from twinserve.export.evidence import Evidence, Facts, Reference
from twinserve.export.pairs import Pairs
from twinserve.export.session import GraphSession, embed_all
from twinserve.manifest import Calibration


def reference_of(session: GraphSession, facts: Facts, evidence: Evidence) -> Reference:
    """Embed the evidence by a twin's fp32 graph, and set its thresholds.

    Raises:
        DataError: too little to calibrate on.
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    labelled, pairs = evidence.calibrate, evidence.pairs
    settings: dict[str, Any] = {
        "metric": facts.metric,
        "dimension": facts.dimension,
        "truncations": facts.truncations,
        "default_far": evidence.default_far,
    }

    def distances(embeddings: Embeddings) -> PairDistances:
        if labelled is not None:
            return pair_distances(embeddings, labelled.labels, facts.metric)
        return judged_distances(_judged(pairs, embeddings), facts.metric)

    def recalibrated(embeddings: Embeddings, precision: str) -> tuple[Calibration, ...]:
        if labelled is not None:
            return calibrations_for(
                embeddings,
                labelled.labels,
                precision=precision,
                data_digest=labelled.digest,
                evidence=evidence.kind,
                **settings,
            )
        digest = "" if pairs is None else pairs.digest
        return calibrations_of_pairs(
            _judged(pairs, embeddings), precision=precision, data_digest=digest, **settings
        )

    rows = labelled.rows if labelled is not None else None if pairs is None else pairs.rows
    embeddings = None if rows is None else embed_all(session, rows)
    return Reference(
        facts=facts,
        gate=evidence.gate,
        gate_embeddings=embed_all(session, evidence.gate),
        ranges=evidence.gate if evidence.ranges is None else evidence.ranges,
        calibrate=labelled,
        pairs=pairs,
        calibrate_rows=rows,
        calibrate_embeddings=embeddings,
        calibrations=() if embeddings is None else recalibrated(embeddings, "fp32"),
        distances=distances,
        recalibrated=recalibrated,
    )


def _judged(pairs: Pairs | None, embeddings: Embeddings) -> JudgedPairs:
    if pairs is None:
        raise DataError("without labelled items or judged pairs there are no thresholds to set")
    return pairs.joined(embeddings)
