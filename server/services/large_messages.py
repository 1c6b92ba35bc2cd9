"""The budget of bytes as the front asks it: what is refused becomes a status, and is counted."""

from __future__ import annotations

import grpc
from grpc_status import rpc_status

from twinserve.errors import ClientOverShare, QueueFull, TwinserveError
from twinserve.server.batching.byte_budget import ByteBudget
from twinserve.server.services.status import status_of
from twinserve.server.watching.metrics import Metrics


class LargeMessages:
    """See `twinserve.server.front.budget.Budget`."""

    def __init__(self, budget: ByteBudget, metrics: Metrics) -> None:
        self._budget = budget
        self._metrics = metrics
        for kind in (QueueFull, ClientOverShare):
            # A counter that begins with its first refusal would hide that one from a rate.
            metrics.refused_calls.labels(kind.reason)

    @property
    def crowded(self) -> bool:
        """Whether so much is inside that streams are not to be read for now."""
        return self._budget.crowded

    def take(self, size: int, client: str) -> grpc.Status | None:
        """Count so many bytes, or return what they are refused with."""
        try:
            self._budget.take(size, client)
        except TwinserveError as error:
            self._metrics.rejections.labels(error.reason).inc()
            self._metrics.refused_calls.labels(error.reason).inc()
            status: grpc.Status = rpc_status.to_status(status_of(error))
            return status
        return None

    def give_back(self, size: int, client: str) -> None:
        """Count so many bytes less."""
        self._budget.give_back(size, client)
