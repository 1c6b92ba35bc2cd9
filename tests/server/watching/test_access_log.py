"""Which calls the access log has, and how many lines of them."""

from __future__ import annotations

import logging
import time

import pytest
from google.rpc import status_pb2

from twinserve.errors import ConfigError, QueueFull
from twinserve.server.config import AccessLogSettings, _access_log
from twinserve.server.security.access import Access
from twinserve.server.services.calls import Encoded
from twinserve.server.services.status import status_of
from twinserve.server.watching.access_log import MOST, AccessLog
from twinserve.server.watching.ended_call import CallWatches, EndedCall
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared


class Context:
    """What the log asks of a call."""

    access = Access("key-7")
    message_bytes = 12

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata

    def peer(self) -> str:
        return "ipv4:10.0.0.7:40312"


def call(code: str = "OK", seconds: float = 0.0, reply: object = None) -> EndedCall:
    request = pb.EmbedRequest(inputs=[shared.Input(text="a secret sentence")] * 3)
    context = Context(("x-request-id", "r-1"), ("authorization", "Bearer s3cret"))
    ended = EndedCall("Embed", code, "small", time.perf_counter(), context, request, reply)
    ended.seconds = seconds
    return ended


def failed() -> EndedCall:
    error = QueueFull("full", retry_after=1.0)
    return call("RESOURCE_EXHAUSTED", reply=status_of(error, "r-1"))


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.name == "twinserve.access"]


def test_a_line_says_whose_call_it_was_how_it_ended_and_where_its_time_went(
    caplog: pytest.LogCaptureFixture,
) -> None:
    timing = shared.ServerTiming(queue_us=1500, preprocess_us=250, inference_us=3000)
    reply = Encoded(b"x" * 90, "small", timing_data=timing.SerializeToString())
    AccessLog(AccessLogSettings(rate=1.0)).ended(call(seconds=0.0051, reply=reply))
    (line,) = lines(caplog)
    facts = {name: value for name, value in vars(line).items() if name in WANTED}
    assert facts == WANTED
    text = str(vars(line))
    assert "s3cret" not in text
    assert "sentence" not in text


WANTED = {
    "request_id": "r-1",
    "method": "Embed",
    "code": "OK",
    "model": "small",
    "ms": 5.1,
    "preprocess_ms": 0.25,
    "queue_ms": 1.5,
    "inference_ms": 3.0,
    "search_ms": 0.0,
    "items": 3,
    "request_bytes": 12,
    "reply_bytes": 90,
    "key": "key-7",
    "peer": "ipv4:10.0.0.7:40312",
}


def test_calls_that_fail_are_written_by_default_and_others_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = AccessLog(AccessLogSettings())
    log.ended(call())
    log.ended(failed())
    (line,) = lines(caplog)
    assert (line.__dict__["code"], line.__dict__["reason"]) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    AccessLog(AccessLogSettings(errors=False)).ended(failed())
    assert len(lines(caplog)) == 1


def test_slow_calls_are_written_always_and_as_warnings(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(AccessLogSettings(errors=False, slow_seconds=2.0))
    log.ended(call(seconds=1.9))
    log.ended(call(seconds=2.0))
    (line,) = lines(caplog)
    assert (line.levelno, line.getMessage()) == (logging.WARNING, "slow call")
    AccessLog(AccessLogSettings(errors=False, slow_seconds=0.0)).ended(call(seconds=99.0))
    assert len(lines(caplog)) == 1


def test_a_share_is_drawn_by_chance(caplog: pytest.LogCaptureFixture) -> None:
    draws = iter([0.009, 0.5, 0.01, 0.0])
    log = AccessLog(AccessLogSettings(rate=0.01), draw=lambda: next(draws))
    for _ in range(4):
        log.ended(call())
    assert len(lines(caplog)) == 2


def test_a_storm_of_failures_is_cut_and_the_next_line_says_how_many_are_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [100.0]
    log = AccessLog(AccessLogSettings(), clock=lambda: now[0])
    for _ in range(MOST + 30):
        log.ended(failed())
    assert len(lines(caplog)) == MOST
    now[0] = 101.0
    log.ended(failed())
    log.ended(failed())
    assert [one.__dict__.get("left_out") for one in lines(caplog)[-2:]] == [30, None]


def test_a_watch_that_breaks_spoils_no_call_and_no_other_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def ended(self, call: EndedCall) -> None:
            raise ValueError("broken")

    watches = CallWatches()
    watches.add(Broken())
    watches.add(AccessLog(AccessLogSettings()))
    watches.ended(failed())
    assert len(lines(caplog)) == 1
    assert "Embed could not be written down" in caplog.text


def test_a_reply_that_is_none_and_one_that_is_a_status_count_no_bytes() -> None:
    assert call("CANCELLED").reply_bytes == 0
    assert call("INTERNAL", reply=status_pb2.Status(code=13, message="x")).reply_bytes == 0
    assert call(reply=pb.CompareResponse(model_version="m@1")).reply_bytes == 5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("off", AccessLogSettings(False, 0.0, 3.0)),
        ("errors", AccessLogSettings(True, 0.0, 3.0)),
        ("0.01", AccessLogSettings(True, 0.01, 3.0)),
        ("1", AccessLogSettings(True, 1.0, 3.0)),
    ],
)
def test_the_flag_takes_words_and_shares(text: str, wanted: AccessLogSettings) -> None:
    assert _access_log(text, 3.0) == wanted


@pytest.mark.parametrize("text", ["on", "0", "1.5", "-1", "nan", ""])
def test_the_flag_refuses_what_is_neither(text: str) -> None:
    with pytest.raises(ConfigError, match="give off, errors, or the share"):
        _access_log(text, 3.0)
    with pytest.raises(ConfigError, match="--slow-call-seconds is -1"):
        _access_log("off", -1.0)
