"""The hand-written replies of Enroll are those of the public messages, byte for byte."""

from __future__ import annotations

import pytest

from twinserve.errors import NotFinite, TwinserveError
from twinserve.server.gallery import Change, Enrolled
from twinserve.server.services import enroll_reply
from twinserve.server.services.status import status_of
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared

CHANGES = {
    Change.CREATED: pb.CHANGE_CREATED,
    Change.REPLACED: pb.CHANGE_REPLACED,
    Change.UNCHANGED: pb.CHANGE_UNCHANGED,
}


@pytest.mark.parametrize("change", list(Change))
def test_a_reply_is_that_of_the_messages(change: Change) -> None:
    fault = NotFinite("the embedding holds NaN", field="items[1]")
    results: list[Enrolled | TwinserveError] = [
        Enrolled("i" * length, change) for length in range(1, 129)
    ]
    results[1:1] = [fault]
    timing = shared.ServerTiming(search_us=17)
    expected = pb.EnrollResponse(consistency_token="token", timing=timing)
    for result in results:
        if isinstance(result, TwinserveError):
            expected.results.add().error.CopyFrom(status_of(result))
        else:
            enrolled = pb.Enrolled(id=result.id, change=CHANGES[result.change])
            expected.results.add(enrolled=enrolled)
    written = enroll_reply.response(results, "token", timing.SerializeToString())
    assert written == expected.SerializeToString(deterministic=True)


def test_a_reply_without_a_time_says_nothing_of_it() -> None:
    timing = shared.ServerTiming()
    written = enroll_reply.response([], "t", timing.SerializeToString())
    assert written == pb.EnrollResponse(consistency_token="t", timing=timing).SerializeToString()
