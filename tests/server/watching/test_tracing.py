"""Spans of calls: made afterwards, sampled as the caller's trace is, and sent to a collector."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import conftest, twins
from tests.server import wire
from tests.server.wire import Stubs
from twinserve.errors import ConfigError, InternalFault
from twinserve.server.services.calls import Encoded
from twinserve.server.services.status import status_of
from twinserve.server.watching import tracing
from twinserve.server.watching.ended_call import EndedCall
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared

try:
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind, StatusCode
except ImportError:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip("pip install 'twinserve[tracing]' brings what is tested", allow_module_level=True)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TAKEN, LEFT = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
EMBED = "twinserve.v1.EmbeddingService/Embed"


class Context:
    """What tracing asks of a call."""

    method = f"/{EMBED}"

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self.metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata

    def peer(self) -> str:
        return "ipv6:%5B::1%5D:40312"


def embedded(*metadata: tuple[str, str | bytes]) -> EndedCall:
    timing = shared.ServerTiming(preprocess_us=1000, queue_us=2000, inference_us=3000, batch_rows=8)
    reply = Encoded(b"", "small", timing_data=timing.SerializeToString())
    request = pb.EmbedRequest(inputs=[shared.Input()] * 2)
    call = EndedCall("Embed", "OK", "small", 0.0, Context(*metadata), request, reply)
    call.seconds = 0.010
    return call


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(memory: InMemorySpanExporter) -> tracing.Tracing:
    """With the SDK's own sampler, which goes by the parent and takes calls without one."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return tracing.Tracing(provider)


def by_name(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    return {span.name: span for span in spans}


def test_a_call_is_a_span_of_its_callers_trace_with_spans_for_where_its_time_went(
    memory: InMemorySpanExporter, traces: tracing.Tracing
) -> None:
    before = time.time_ns()
    traces.ended(embedded(("traceparent", TAKEN), ("x-request-id", "r-1"), ("a-bin", b"\0")))
    spans = by_name(memory.get_finished_spans())
    assert set(spans) == {EMBED, "preprocess", "queue", "inference"}
    whole = spans[EMBED]
    assert (whole.kind, whole.status.status_code) == (SpanKind.SERVER, StatusCode.UNSET)
    assert format(whole.context.trace_id, "032x") == TRACE
    assert format(whole.parent.span_id, "016x") == PARENT
    assert whole.end_time - whole.start_time == 10_000_000
    assert 0 <= whole.end_time - before < 5e9
    assert whole.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": EMBED,
        "rpc.response.status_code": "OK",
        "twinserve.request_id": "r-1",
        "twinserve.model": "small",
        "twinserve.items": 2,
        "network.peer.address": "::1",
    }
    at = whole.start_time
    for name, length in (("preprocess", 1), ("queue", 2), ("inference", 3)):
        part = spans[name]
        assert part.parent.span_id == whole.context.span_id
        assert (part.start_time, part.end_time) == (at, at + length * 1_000_000), name
        at = part.end_time
    assert spans["inference"].attributes == {"twinserve.batch_rows": 8}


def test_a_call_of_a_trace_that_is_not_sampled_makes_no_spans(
    memory: InMemorySpanExporter, traces: tracing.Tracing
) -> None:
    traces.ended(embedded(("traceparent", LEFT)))
    assert memory.get_finished_spans() == ()


def test_a_call_without_a_trace_begins_one(
    memory: InMemorySpanExporter, traces: tracing.Tracing
) -> None:
    traces.ended(embedded(("traceparent", "not one")))
    assert by_name(memory.get_finished_spans())[EMBED].parent is None


def test_faults_of_the_server_are_errors_and_those_of_callers_are_not(
    memory: InMemorySpanExporter, traces: tracing.Tracing
) -> None:
    for code, reply in (("INTERNAL", status_of(InternalFault("broken"))), ("NOT_FOUND", None)):
        traces.ended(EndedCall("Embed", code, "", 0.0, Context(), None, reply))
    fault, missing = memory.get_finished_spans()
    assert fault.status.status_code is StatusCode.ERROR
    assert fault.attributes is not None
    assert fault.attributes["error.type"] == "INTERNAL"
    assert missing.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:40312", "10.0.0.7"),
        ("ipv6:%5Bfe80::1%5D:40312", "fe80::1"),
        ("ipv4:10.0.0.7", "10.0.0.7"),
        ("ipv6:[fe80::1]", "fe80::1"),
        ("unix:", "unix:"),
    ],
)
def test_the_peers_address_is_told_without_its_port(
    memory: InMemorySpanExporter, traces: tracing.Tracing, peer: str, address: str
) -> None:
    call = embedded()
    call.context.peer = lambda: peer
    traces.ended(call)
    attributes = by_name(memory.get_finished_spans())[EMBED].attributes
    assert attributes["network.peer.address"] == address


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")],
)
def test_an_exporter_that_there_is_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} is '{value}'; give "):
        tracing.tracing()


def test_the_service_is_called_twinserve_unless_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    for name in ("twinserve", "faces"):
        found = tracing.tracing()._provider.resource.attributes
        assert found["service.name"] == name
        monkeypatch.setenv("OTEL_SERVICE_NAME", "faces")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.came = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.came.set()
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    found = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield found, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_server_sends_the_traces_that_callers_sample_to_the_collector(
    collector: tuple[Collector, str], twin_file: Path, tmp_path: Path
) -> None:
    found, address = collector
    (pixels,) = twins.classes_of_pixels(1, 1)[0]
    server = conftest.start(
        *("--model", twin_file, "--data-dir", tmp_path, "--tracing", "--runners", "1"),
        *("--threads", "1"),
        environment={"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "100"},
    )
    try:
        with server.channel() as channel:
            stub = Stubs(channel).embedding
            for header in (LEFT, TAKEN):
                request = pb.EmbedRequest(inputs=[wire.tensor(pixels)])
                stub.Embed(request, metadata=(("traceparent", header),))
        assert found.came.wait(20), "".join(server.errors)
    finally:
        assert server.stop() == 0
    (resource,) = (spans for request in found.requests for spans in request.resource_spans)
    names = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert names["service.name"] == "twinserve"
    spans = {span.name: span for scope in resource.scope_spans for span in scope.spans}
    assert set(spans) == {EMBED, "preprocess", "queue", "inference"}
    assert spans[EMBED].trace_id.hex() == TRACE
    assert spans[EMBED].parent_span_id.hex() == PARENT


def test_a_collector_that_is_away_delays_no_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "LAST_SECONDS", 0.1)
    back = threading.Event()

    class Away(InMemorySpanExporter):
        def shutdown(self) -> None:
            back.wait(30)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Away()))
    began = time.monotonic()
    tracing.Tracing(provider).close()
    back.set()
    assert time.monotonic() - began < 15
    assert "could not be sent" in caplog.text
