"""What the front refuses calls with before anything of them is read.

In: how many calls may be inside, and the metrics. Out: finished statuses, kept, since a server
that must refuse thousands of calls a second has no time to write each anew.
"""

from __future__ import annotations

import functools
import math

import grpc
from grpc_status import rpc_status

from twinserve.errors import DeadlineExceeded, QueueFull, TwinserveError, Unavailable
from twinserve.server.front import Refusals
from twinserve.server.gate import stopping
from twinserve.server.services.status import status_of
from twinserve.server.watching.metrics import Metrics

# Seconds after which a call refused for the number of calls may come again.
CALLS_AGAIN = 0.25
# Waits are told in steps, so that few statuses say all of them.
_STEP = 0.05
_KINDS: tuple[type[TwinserveError], ...] = (QueueFull, DeadlineExceeded, Unavailable)


def refusals(metrics: Metrics, max_calls: int) -> Refusals:
    """Return the refusals of a server that lets in `max_calls` calls at a time."""
    for kind in _KINDS:
        # A counter that begins with its first refusal would hide that one from a rate.
        metrics.refused_calls.labels(kind.reason)

    def count(kind: type[TwinserveError]) -> None:
        metrics.rejections.labels(kind.reason).inc()
        metrics.refused_calls.labels(kind.reason).inc()

    def overloaded() -> grpc.Status:
        count(QueueFull)
        return _overloaded(max_calls)

    def late(seconds: float) -> grpc.Status:
        count(DeadlineExceeded)
        return _late(max(1, math.ceil(seconds / _STEP)))

    def gone() -> grpc.Status:
        count(Unavailable)
        return _stopping()

    return Refusals(overloaded, late, gone)


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
