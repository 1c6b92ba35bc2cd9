"""A call by HTTP is found by its id: in its reply, in its error, in the logs; and counted once."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence

import pytest
from google.rpc import error_details_pb2 as details
from prometheus_client import generate_latest

from tests.server import wire
from tests.server.gateway.asking import Answer
from tests.server.gateway.served import COMPARE, EMBED, Keys, Served, run
from twinserve.server.config import AccessLogSettings
from twinserve.server.gateway import calls as gateway_calls
from twinserve.server.watching.access_log import AccessLog
from twinserve.server.watching.ended_call import EndedCall

MODELS = "/twinserve.v1.ModelService"


class Ended:
    """Keeps what watchers of calls are told."""

    def __init__(self, served: Served) -> None:
        self.calls: list[EndedCall] = []
        served.servicer.metrics.watches.add(self)

    def ended(self, call: EndedCall) -> None:
        self.calls.append(call)

    @property
    def facts(self) -> Sequence[tuple[str, str, str, str]]:
        return [(one.request_id, one.method, one.code, one.reason) for one in self.calls]


def count(served: Served, name: str, reason: str) -> float:
    text = generate_latest(served.servicer.metrics.registry).decode()
    line = f'twinserve_{name}_total{{reason="{reason}"}} '
    return sum(float(one.split()[-1]) for one in text.splitlines() if one.startswith(line))


def id_of(answer: Answer) -> str:
    return answer.headers["x-request-id"]


def id_in(answer: Answer) -> str:
    """The id in an error's ErrorInfo, where a call by gRPC has it."""
    return wire.detail(answer.error(), details.ErrorInfo).metadata["request_id"]


def test_each_reply_names_the_id_that_was_sent_or_one_that_was_made() -> None:
    async def test(served: Served) -> None:
        sent = {"X-Request-Id": "shop-42/7"}
        assert id_of(await served.ask(EMBED, **sent)) == "shop-42/7"
        assert id_of(await served.ask("/v1/embeddings", b"no JSON", **sent)) == "shop-42/7"
        assert id_of(await served.ask("/healthz", **sent)) == "shop-42/7"
        for odd in ({}, {"X-Request-Id": 'forged"} line'}, {"X-Request-Id": "x" * 129}):
            made = id_of(await served.ask(EMBED, **odd))
            assert len(made) == 32
            assert made not in odd.values()

    run(test)


def test_an_error_names_its_id_as_by_grpc_whoever_found_it() -> None:
    async def test(served: Served) -> None:
        for body in (b"no JSON", b'{"model": "fault"}'):
            found = await served.ask(EMBED, body, **{"X-Request-Id": "mine"})
            assert id_in(found) == id_of(found) == "mine"
            made = await served.ask(EMBED, body)
            assert id_in(made) == id_of(made) != "mine"
        assert "under request id" in made.error().message
        served.front.calls = 2
        full = await served.ask(EMBED)
        assert wire.reason(full.error()) == "QUEUE_FULL"
        assert id_in(full) == id_of(full)

    run(test)


def test_a_reply_that_goes_in_parts_names_its_id_too() -> None:
    async def test(served: Served) -> None:
        asked = b'{"requestId": "' + b"x" * 500_000 + b'"}'
        assert id_of(await served.ask(EMBED, asked, **{"X-Request-Id": "large"})) == "large"

    run(test)


@pytest.mark.parametrize(
    ("key", "path", "body", "fact"),
    [
        ("none", EMBED, b"{}", ("Embed", "UNAUTHENTICATED", "UNAUTHENTICATED")),
        ("low", EMBED, b"{}", ("Embed", "PERMISSION_DENIED", "PERMISSION_DENIED")),
        ("busy", EMBED, b"{}", ("Embed", "RESOURCE_EXHAUSTED", "CLIENT_OVER_SHARE")),
        ("broken", EMBED, b"{}", ("Embed", "INTERNAL", "INTERNAL")),
        ("good", COMPARE, b"{", ("Compare", "INVALID_ARGUMENT", "INVALID_INPUT")),
        ("good", EMBED, b"{" * (1 << 21), ("Embed", "INVALID_ARGUMENT", "LIMIT_EXCEEDED")),
        ("good", "/v1/embeddings", b"{", ("Embed", "INVALID_ARGUMENT", "INVALID_INPUT")),
        ("good", "/v1/a\n/b", b"{}", ("_OTHER", "NOT_FOUND", "NOT_FOUND")),
        ("good", f"{MODELS}/Nme", b"{}", ("_OTHER", "UNIMPLEMENTED", "NOT_BUILT")),
        ("good", f"{MODELS}x/a", b"{}", ("_OTHER", "UNIMPLEMENTED", "NOT_BUILT")),
    ],
)
def test_what_the_gateway_refuses_is_written_down_and_counted_once(
    key: str, path: str, body: bytes, fact: tuple[str, str, str]
) -> None:
    async def test(served: Served) -> None:
        ended = Ended(served)
        sent = {"X-Request-Id": "mine", "Authorization": f"Bearer {key}"}
        assert (await served.ask(path, io.BytesIO(body), **sent)).status >= 400
        assert ended.facts == [("mine", *fact)]
        assert ended.calls[0].full_method.endswith(fact[0])
        for name in ("rejections", "refused_calls"):
            assert count(served, name, fact[2]) == 1, name

    run(test, door=Keys())


def test_a_full_server_s_refusals_are_written_down_and_counted_once() -> None:
    async def test(served: Served) -> None:
        ended = Ended(served)
        served.front.calls = 2
        await served.ask("/v1/embeddings", **{"X-Request-Id": "mine"})
        assert ended.facts == [("mine", "Embed", "RESOURCE_EXHAUSTED", "QUEUE_FULL")]
        assert count(served, "refused_calls", "QUEUE_FULL") == 1
        assert count(served, "rejections", "QUEUE_FULL") == 1

    run(test)


def test_what_a_method_took_is_written_down_by_it_alone_and_is_no_refusal() -> None:
    async def test(served: Served) -> None:
        ended = Ended(served)
        await served.ask(EMBED, b'{"model": "fault"}', **{"X-Request-Id": "fault"})
        await served.ask(EMBED, **{"X-Request-Id": "well"})
        late = {"X-Request-Id": "late", "Connect-Timeout-Ms": "50"}
        assert (await served.ask(COMPARE, **late)).status == 504
        assert ended.facts == [
            ("fault", "Embed", "INTERNAL", "INTERNAL"),
            ("well", "Embed", "OK", ""),
            ("late", "Compare", "CANCELLED", ""),
        ]
        for reason in ("INTERNAL", "DEADLINE_EXCEEDED"):
            assert count(served, "rejections", reason) == 1, reason
            assert count(served, "refused_calls", reason) == 0, reason

    run(test)


def test_a_call_whose_time_is_over_before_its_method_has_it_is_refused() -> None:
    async def test(served: Served) -> None:
        ended = Ended(served)

        async def never_whole() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(60)

        late = {"X-Request-Id": "late", "Connect-Timeout-Ms": "50"}
        assert (await served.ask(EMBED, never_whole(), **late)).status == 504
        assert ended.facts == [("late", "Embed", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")]
        assert count(served, "refused_calls", "DEADLINE_EXCEEDED") == 1

    run(test)


def test_the_access_log_s_line_says_whose_refused_call_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(served: Served) -> None:
        served.servicer.metrics.watches.add(AccessLog(AccessLogSettings()))
        sent = {"X-Request-Id": "mine", "Authorization": "Bearer good"}
        await served.ask(EMBED, b'{"a secret": 1}', **sent)

    run(test, door=Keys())
    (line,) = [vars(one) for one in caplog.records if one.name == "twinserve.access"]
    assert (line["key"], line["peer"], line["request_bytes"]) == ("tenant", "ipv4:127.0.0.1", 15)
    assert line["ms"] > 0
    assert "secret" not in str(line)


def test_a_fault_is_logged_under_the_id_that_its_client_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(gateway_calls.Call, "away", broken)

    async def test(served: Served) -> None:
        found = await served.ask(EMBED, **{"X-Request-Id": "mine"})
        assert found.error().message.endswith("under request id mine")

    run(test)
    (line,) = [one for one in caplog.records if one.exc_info]
    assert vars(line)["request_id"] == "mine"
