"""What the front refuses calls with before anything of them is read.

In: how many calls may be inside, the door, and the metrics. Out: finished statuses, kept, since a
server that must refuse thousands of calls a second has no time to write each anew.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable

import grpc
from grpc_status import rpc_status

from twinserve.errors import (
    ClientOverShare,
    DeadlineExceeded,
    InternalFault,
    PermissionDenied,
    QueueFull,
    TwinserveError,
    Unauthenticated,
    Unavailable,
)
from twinserve.server.front import Admit, Refusals
from twinserve.server.gate import stopping
from twinserve.server.security.access import Access, Door, Metadata
from twinserve.server.services.status import status_of
from twinserve.server.watching.metrics import Metrics

log = logging.getLogger(__name__)

# Seconds after which a call refused for the number of calls may come again.
CALLS_AGAIN = 0.25
# Waits are told in steps, so that few statuses say all of them.
_STEP = 0.05
_KINDS: tuple[type[TwinserveError], ...] = (QueueFull, DeadlineExceeded, Unavailable)
_AT_THE_DOOR: tuple[type[TwinserveError], ...] = (
    Unauthenticated,
    PermissionDenied,
    ClientOverShare,
)
_BY_REASON: dict[str, type[TwinserveError]] = {
    InternalFault.reason: InternalFault,
    **{kind.reason: kind for kind in _AT_THE_DOOR},
}


def refusals(metrics: Metrics, max_calls: int) -> Refusals:
    """Return the refusals of a server that lets in `max_calls` calls at a time."""
    for kind in _KINDS:
        # A counter that begins with its first refusal would hide that one from a rate.
        metrics.refused_calls.labels(kind.reason)

    def overloaded() -> grpc.Status:
        _count(metrics, QueueFull)
        return _overloaded(max_calls)

    def late(seconds: float) -> grpc.Status:
        _count(metrics, DeadlineExceeded)
        return _late(max(1, math.ceil(seconds / _STEP)))

    def gone() -> grpc.Status:
        _count(metrics, Unavailable)
        return _stopping()

    return Refusals(overloaded, late, gone)


def over_share(metrics: Metrics, most: int) -> Callable[[], grpc.Status]:
    """Return the refusal of a call whose key has `most` calls inside already."""

    def refuse() -> grpc.Status:
        _count(metrics, ClientOverShare)
        return _too_many(most)

    return refuse


def admission(door: Door, metrics: Metrics) -> Admit:
    """Return the door as the front asks it: whom it refuses gets a finished status."""
    for kind in _AT_THE_DOOR:
        metrics.refused_calls.labels(kind.reason)

    def admit(method: str, metadata: Metadata, peer: str) -> Access | grpc.Status:
        try:
            return door.admit(method, metadata, peer)
        except TwinserveError as error:
            _count(metrics, type(error))
            wait = error.retry_after
            steps = 0 if wait is None else max(1, math.ceil(wait / _STEP))
            return _refused(error.reason, error.message, steps)
        except Exception:
            # Whatever fails here must not let anybody in, nor leave a call without an answer.
            log.exception("the door failed at %s", method)
            message = "the server cannot check keys; its log says why"
            return _refused(InternalFault.reason, message, 0)

    return admit


def _count(metrics: Metrics, kind: type[TwinserveError]) -> None:
    metrics.rejections.labels(kind.reason).inc()
    metrics.refused_calls.labels(kind.reason).inc()


@functools.lru_cache(256)
def _refused(reason: str, message: str, steps: int) -> grpc.Status:
    kind = _BY_REASON[reason]
    return _status(kind(message, retry_after=_STEP * steps if steps else None))


@functools.cache
def _overloaded(limit: int) -> grpc.Status:
    return _status(
        QueueFull(
            f"{limit} calls are inside, which is the limit, so this one is refused; retry in "
            f"{CALLS_AGAIN:.2f} s, or send several inputs a call",
            retry_after=CALLS_AGAIN,
            metadata={"limit": str(limit)},
        )
    )


@functools.cache
def _too_many(limit: int) -> grpc.Status:
    return _status(
        ClientOverShare(
            f"{limit} calls of this key are inside, which is its share of all, so this one is "
            f"refused; end some, or retry in {CALLS_AGAIN:.2f} s",
            retry_after=CALLS_AGAIN,
            metadata={"limit": str(limit)},
        )
    )


@functools.lru_cache(256)
def _late(steps: int) -> grpc.Status:
    seconds = _STEP * steps
    return _status(
        DeadlineExceeded(
            f"what goes before this call takes about {seconds:.2f} s, too much of what its "
            "deadline leaves, so it is refused unread; allow more time, or send it again then",
            retry_after=seconds,
        )
    )


@functools.cache
def _stopping() -> grpc.Status:
    return _status(stopping())


def _status(error: TwinserveError) -> grpc.Status:
    status: grpc.Status = rpc_status.to_status(status_of(error))
    return status
