"""The hand-written replies of Search are those of the public messages, byte for byte."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twinserve import decision
from twinserve.errors import NotFinite
from twinserve.server.gallery import SearchOutcome
from twinserve.server.services import codec, gallery_codec, search_reply
from twinserve.server.services.status import status_of
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared

LIMITS = (
    decision.SearchLimit(None),
    decision.SearchLimit(0.0, decision.Evidence.REQUEST),
    decision.SearchLimit(0.5, decision.Evidence.GALLERY, 0.01, 0.02, 0.0),
    decision.SearchLimit(1e300, decision.Evidence.MODEL, None, None, 3.5),
)


def outcome_of(rng: np.random.Generator, probes: int) -> SearchOutcome:
    counts = rng.integers(0, 5, size=probes)
    starts = [0, *np.cumsum(counts).tolist()]
    hits = starts[-1]
    return SearchOutcome(
        starts=starts,
        ids=[bytes(b"i" * int(size)) for size in rng.integers(1, 129, size=hits)],
        subject_names=[b"\xc3\xa9" * int(size) for size in rng.integers(0, 128, size=hits)],
        distances=[0.0 if d < 0.2 else float(d) for d in rng.random(hits)],
        sizes=[1] * hits,
        exact=rng.random(probes) < 0.5,  # type: ignore[arg-type]
        items=9,
        subjects=7,
        token="t",
    )


@pytest.mark.parametrize("limit", LIMITS)
def test_a_reply_is_that_of_the_messages(limit: decision.SearchLimit) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        outcome = outcome_of(rng, probes=4)
        fault = NotFinite("probe 4 holds NaN")
        timing = shared.ServerTiming(search_us=17)
        expected = pb.SearchResponse(consistency_token="token", model_version="m@1", timing=timing)
        results = []
        for probe, hits in enumerate(outcome.results):
            results.append(search_reply.result(outcome, probe, limit, {1: None}, {}))
            message = expected.results.add().hits
            message.SetInParent()
            for hit in hits.hits:
                message.hits.add(
                    item=shared.Item(id=hit.item_id, subject=hit.subject),
                    score=codec.score_message(hit.distance, decision.Likelihood(None, None)),
                    match=limit.threshold is not None and hit.distance <= limit.threshold,
                )
            matched = any(hit.match for hit in message.hits)
            gallery_codec.write_limit(message, limit)
            message.exact = bool(hits.exact)
            message.outcome = shared.OUTCOME_MATCH if matched else shared.OUTCOME_NO_MATCH
            if limit.threshold is None:
                message.outcome = shared.OUTCOME_NOT_CALIBRATED
        results.append(search_reply.error(fault))
        expected.results.add().error.CopyFrom(status_of(fault))
        written = search_reply.response(results, "token", "m@1", timing.SerializeToString())
        assert written == expected.SerializeToString(deterministic=True)


def test_a_distance_beyond_the_threshold_by_the_least_is_no_match() -> None:
    limit = decision.SearchLimit(0.5, decision.Evidence.REQUEST)
    for distance, match in ((0.5, True), (math.nextafter(0.5, 1.0), False)):
        outcome = SearchOutcome([0, 1], [b"a"], [b""], [distance], [1], [True], 1, 1, "")
        result = pb.SearchResult.FromString(search_reply.result(outcome, 0, limit, {1: None}, {}))
        assert result.hits.hits[0].match is match
        assert result.hits.outcome == (shared.OUTCOME_MATCH if match else shared.OUTCOME_NO_MATCH)
