"""What the front refuses unread: the code and reason of each, and that each is counted."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from prometheus_client import generate_latest

from tests.server import wire
from twinserve.server.front import Refusals
from twinserve.server.services.refusals import refusals
from twinserve.server.watching.metrics import Metrics

CODE = grpc.StatusCode
KINDS: dict[str, tuple[Callable[[Refusals], grpc.Status], grpc.StatusCode, str]] = {
    "overloaded": (lambda all_: all_.overloaded(), CODE.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    "late": (lambda all_: all_.late(3.21), CODE.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    "stopping": (lambda all_: all_.stopping(), CODE.UNAVAILABLE, "NOT_SERVING"),
}


def told(status: grpc.Status) -> status_pb2.Status:
    """What the status carries in its trailer."""
    trailers = dict(status.trailing_metadata or ())
    return status_pb2.Status.FromString(trailers["grpc-status-details-bin"])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_each_refusal_says_why_and_when_to_come_again(kind: str) -> None:
    ask, code, reason = KINDS[kind]
    status = ask(refusals(Metrics(), 5))
    assert status.code is code
    assert wire.reason(told(status)) == reason
    assert wire.detail(told(status), details.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert len(status.details) > 20, "a refusal is a sentence"


def test_a_late_call_hears_how_long_it_would_wait_in_steps() -> None:
    status = refusals(Metrics(), 5).late(3.21)
    assert "3.25 s" in status.details
    assert wire.detail(told(status), details.RetryInfo).retry_delay.ToMilliseconds() == 3250
    assert refusals(Metrics(), 5).late(3.24) is status, "kept, not written anew"


@pytest.mark.parametrize("kind", KINDS)
def test_every_refusal_is_counted_by_its_reason(kind: str) -> None:
    metrics = Metrics()
    made = refusals(metrics, 5)
    ask, _, reason = KINDS[kind]
    line = f'twinserve_refused_calls_total{{reason="{reason}"}} '
    assert f"{line}0.0" in generate_latest(metrics.registry).decode(), "there before the first"
    for _ in range(3):
        ask(made)
    text = generate_latest(metrics.registry).decode()
    assert f"{line}3.0" in text
    assert f'twinserve_rejections_total{{reason="{reason}"}} 3.0' in text
    assert text.count("twinserve_refused_calls_total{") == 3
