"""What the front refuses unread: the code and reason of each, and that each is counted."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from prometheus_client import generate_latest

from tests.server import wire
from twinserve.errors import ClientOverShare, PermissionDenied, TwinserveError, Unauthenticated
from twinserve.server.front import Refusals
from twinserve.server.security.access import Access, Metadata
from twinserve.server.services.refusals import admission, refusals
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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unauthenticated("no key"), CODE.UNAUTHENTICATED),
        (PermissionDenied("too low"), CODE.PERMISSION_DENIED),
        (ClientOverShare("too often", retry_after=0.21), CODE.RESOURCE_EXHAUSTED),
    ],
)
def test_whom_the_door_refuses_hears_why_and_is_counted(
    error: TwinserveError, code: grpc.StatusCode
) -> None:
    metrics = Metrics()
    admit = admission(ShutDoor(error), metrics)
    status = admit("/s/Method", (), "")
    assert isinstance(status, grpc.Status)
    assert status.code is code
    assert status.details == error.message
    assert wire.reason(told(status)) == error.reason
    if error.retry_after:
        assert wire.detail(told(status), details.RetryInfo).retry_delay.ToMilliseconds() == 250
    assert admit("/s/Method", (), "") is status, "kept, not written anew"
    line = f'twinserve_refused_calls_total{{reason="{error.reason}"}} 2.0'
    assert line in generate_latest(metrics.registry).decode()


def test_a_door_that_fails_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    status = admission(ShutDoor(ZeroDivisionError()), Metrics())("/s/Method", (), "")
    assert isinstance(status, grpc.Status)
    assert status.code is CODE.INTERNAL
    assert "the door failed" in caplog.text


class ShutDoor:
    """Refuses everybody with one error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def admit(self, method: str, metadata: Metadata, peer: str) -> Access:
        raise self._error
