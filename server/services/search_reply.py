"""The replies of Search, written as the bytes that go on the wire.

A call of 32 probes has hundreds of hits of three messages each; to make these as objects takes as
long as the search. What is written here by hand is the frame of each hit; what all probes of a call
share comes from the public messages. The tests hold these bytes equal to theirs.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping

from twinserve import decision
from twinserve.errors import TwinserveError
from twinserve.manifest import Calibration
from twinserve.server.gallery import SearchOutcome
from twinserve.server.services import gallery_codec
from twinserve.server.services.status import status_of
from twinserve.server.services.wire_format import FIXED_64, VARINT, Heads, field, number, text
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared

EVEN_PRIOR = 0.5
_double = struct.Struct("<d").pack


def response(results: list[bytes], token: str, model_version: str, timing: bytes) -> bytes:
    """Write a SearchResponse around its results."""
    parts = [field(_RESULTS, result) for result in results]
    parts += (text(_TOKEN, token), text(_VERSION, model_version), field(_TIMING, timing))
    return b"".join(parts)


def error(fault: TwinserveError) -> bytes:
    """Write the SearchResult of a probe that could not be searched for."""
    return field(_ERROR, status_of(fault).SerializeToString())


def result(
    outcome: SearchOutcome,
    probe: int,
    limit: decision.SearchLimit,
    judges: Mapping[int, Calibration | None],
    details: Mapping[bytes, bytes],
) -> bytes:
    """Write the SearchResult of one probe.

    Args:
        outcome: of the search.
        probe: which of its probes.
        limit: the threshold, and what is known of it.
        judges: by the number of items that a hit is the nearest of, what says how likely "same" is.
        details: by id, what an Item has beside id and subject, where that was asked for.
    """
    parts = []
    threshold = limit.threshold
    matched = False
    hits = slice(outcome.starts[probe], outcome.starts[probe + 1])
    distances = outcome.distances[hits]
    packed = struct.pack(f"<{len(distances)}d", *distances)
    judged = any(judge is not None for judge in judges.values())
    place = 0
    for item_id, subject, distance, size in zip(
        outcome.ids[hits], outcome.subject_names[hits], distances, outcome.sizes[hits], strict=True
    ):
        item = _ID[len(item_id)] + item_id
        if subject:
            item += _SUBJECT[len(subject)] + subject
        if details:
            item += details.get(item_id, b"")
        # In the middle of a hit a default is left out, as everywhere; -0.0 is none.
        score = _DISTANCE + packed[place : place + 8] if distance else b""
        if judged:
            score += _judged(distance, judges[size])
        hit = _ITEM[len(item)] + item + _SCORE[len(score)] + score
        if threshold is not None and distance <= threshold:
            matched = True
            hit += _MATCH
        parts.append(_HIT[len(hit)])
        parts.append(hit)
        place += 8
    parts.append(_tail(limit, matched, outcome.exact[probe]))
    return field(_HITS, b"".join(parts))


def _judged(distance: float, judge: Calibration | None) -> bytes:
    """Return what a score says beside the distance."""
    likelihood = decision.likelihood(distance, judge, EVEN_PRIOR)
    said = b""
    if likelihood.log_likelihood_ratio is not None:
        said += _RATIO + _double(likelihood.log_likelihood_ratio)
    if likelihood.probability is not None:
        said += _PROBABILITY + _double(likelihood.probability)
    return said


@functools.lru_cache(256)
def _tail(limit: decision.SearchLimit, matched: bool, exact: bool) -> bytes:
    """Return what stands behind the hits: many probes have it in common."""
    message = pb.Hits(exact=exact)
    gallery_codec.write_limit(message, limit)
    if limit.threshold is None:
        message.outcome = shared.OUTCOME_NOT_CALIBRATED
    else:
        message.outcome = shared.OUTCOME_MATCH if matched else shared.OUTCOME_NO_MATCH
    return message.SerializeToString()


_RESULTS = number(pb.SearchResponse, "results")
_TOKEN = number(pb.SearchResponse, "consistency_token")
_VERSION = number(pb.SearchResponse, "model_version")
_TIMING = number(pb.SearchResponse, "timing")
_HITS = number(pb.SearchResult, "hits")
_ERROR = number(pb.SearchResult, "error")
_HIT = Heads(number(pb.Hits, "hits"))
_ITEM = Heads(number(pb.Hit, "item"))
_SCORE = Heads(number(pb.Hit, "score"))
_MATCH = number(pb.Hit, "match", VARINT) + b"\x01"
_ID = Heads(number(shared.Item, "id"))
_SUBJECT = Heads(number(shared.Item, "subject"))
_DISTANCE = number(shared.Score, "distance", FIXED_64)
_RATIO = number(shared.Score, "log_likelihood_ratio", FIXED_64)
_PROBABILITY = number(shared.Score, "probability", FIXED_64)
