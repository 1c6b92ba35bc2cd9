"""The replies of Enroll, written as the bytes that go on the wire.

Three messages an item as objects take longer than the item's row in the database. The tests hold
these bytes equal to those of the messages.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from twinserve.errors import TwinserveError
from twinserve.server.gallery import Change, Enrolled
from twinserve.server.services.status import status_of
from twinserve.server.services.wire_format import VARINT, field, number, text, varint
from twinserve.v1 import gallery_service_pb2 as pb


def response(results: Sequence[Enrolled | TwinserveError], token: str, timing: bytes) -> bytes:
    """Write an EnrollResponse; the timing comes as its bytes."""
    parts = [
        _error(result)
        if isinstance(result, TwinserveError)
        # Ids are checked to be ASCII: as many bytes as characters.
        else _begin(len(result.id)) + result.id.encode() + _ENDS[result.change]
        for result in results
    ]
    parts += (text(_TOKEN, token), field(_TIMING, timing))
    return b"".join(parts)


def _error(fault: TwinserveError) -> bytes:
    """Write the result of an item that was not enrolled."""
    return field(_RESULT, field(_ERROR, status_of(fault).SerializeToString()))


@functools.cache
def _begin(length: int) -> bytes:
    """Write what stands before an id of so many bytes, in the result of its item."""
    start = _ID + varint(length)
    start = _ENROLLED + varint(len(start) + length + _END_BYTES) + start
    return _RESULT + varint(len(start) + length + _END_BYTES) + start


_RESULT = number(pb.EnrollResponse, "results")
_TOKEN = number(pb.EnrollResponse, "consistency_token")
_TIMING = number(pb.EnrollResponse, "timing")
_ENROLLED = number(pb.EnrollResult, "enrolled")
_ERROR = number(pb.EnrollResult, "error")
_ID = number(pb.Enrolled, "id")
_CHANGES = {
    Change.CREATED: pb.CHANGE_CREATED,
    Change.REPLACED: pb.CHANGE_REPLACED,
    Change.UNCHANGED: pb.CHANGE_UNCHANGED,
}
_ENDS = {
    change: number(pb.Enrolled, "change", VARINT) + varint(value)
    for change, value in _CHANGES.items()
}
_END_BYTES = 2  # of any of these
