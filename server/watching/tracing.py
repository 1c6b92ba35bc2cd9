"""OpenTelemetry traces: a span a call, with spans below it for where its time went.

The spans are made when a call has ended, from the times that it measured anyway, so a server
without tracing pays nothing, and one with it only for the calls that its sampler picks. Their
lengths are measured; the parts are laid end to end from the call's start, in the order in which a
call passes them. Everything else – the collector, the sampler, the service's name – is set by
OpenTelemetry's own OTEL_… variables. Attributes follow its conventions for RPC.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from twinserve import __version__
from twinserve.errors import ConfigError
from twinserve.server.watching.ended_call import EndedCall

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

LAST_SECONDS = 3.0
# As a call passes them.
PARTS = ("preprocess", "queue", "inference", "search")
# Codes that are the server's fault: the convention for the server's side of gRPC.
_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)


class Tracing:
    """Makes spans of calls that ended.

    Args:
        provider: of OpenTelemetry's SDK, with what the spans go through.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import context, propagate, trace

        self._provider = provider
        self._tracer = provider.get_tracer("twinserve", __version__)
        self._extract = propagate.extract
        self._headers = frozenset(propagate.get_global_textmap().fields)
        self._nothing = context.Context()
        self._server, self._inside = trace.SpanKind.SERVER, trace.SpanKind.INTERNAL
        self._below = trace.set_span_in_context
        self._fault = trace.StatusCode.ERROR

    def ended(self, call: EndedCall) -> None:
        """Make the spans of a call, if the sampler takes it."""
        end = time.time_ns()
        start = end - int(call.seconds * 1e9)
        headers = {key: value for key, value in call.metadata if key in self._headers}
        # Most calls have none, and to read them takes as long as to make a span.
        above = self._extract(headers) if headers else self._nothing
        method = call.full_method
        span = self._tracer.start_span(
            method,
            above,
            kind=self._server,
            attributes={"rpc.system.name": call.rpc_system, "rpc.method": method},
            start_time=start,
        )
        if span.is_recording():
            span.set_attributes(_facts(call))
            if call.code in _FAULTS:
                span.set_status(self._fault, call.reason)
            self._parts(call, self._below(span), start, end)
        span.end(end)

    def _parts(self, call: EndedCall, below: Any, start: int, end: int) -> None:
        timing = call.timing
        if timing is None:
            return
        at = start
        for part in PARTS:
            length = getattr(timing, f"{part}_us") * 1000
            if not length:
                continue
            until = min(at + length, end)
            child = self._tracer.start_span(part, below, kind=self._inside, start_time=at)
            if part == "inference":
                child.set_attribute("twinserve.batch_rows", timing.batch_rows)
            child.end(until)
            at = until

    def close(self) -> None:
        """Send what is left, for `LAST_SECONDS` at most: a collector may be away."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(LAST_SECONDS)
        if ending.is_alive():
            log.warning(
                "the last traces could not be sent within %.0f s and are lost", LAST_SECONDS
            )


def _facts(call: EndedCall) -> dict[str, str | int]:
    facts: dict[str, str | int] = {
        "rpc.response.status_code": call.code,
        "twinserve.request_id": call.request_id,
        "twinserve.model": call.model,
        "twinserve.items": call.items,
        "twinserve.key": call.key,
        "network.peer.address": _address(call.peer),
        "error.type": "" if call.code == "OK" else call.reason or call.code,
    }
    return {name: value for name, value in facts.items() if value != ""}


def _address(peer: str) -> str:
    """Return the host of a peer as gRPC writes it: ipv4:10.0.0.7:40312, ipv6:%5B::1%5D:40312."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    rest = unquote(rest)
    return rest[1:].partition("]")[0] if rest.startswith("[") else rest.partition(":")[0]


def tracing() -> Tracing:
    """Return tracing as OpenTelemetry's environment variables set it.

    Raises:
        ConfigError: its packages are missing, or a variable names what there is not.
    """
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter()
    except ImportError as error:
        raise ConfigError(
            f"--tracing needs OpenTelemetry, and {error.name} is not installed; "
            "pip install 'twinserve[tracing]'"
        ) from error
    named = {SERVICE_VERSION: __version__}
    if "OTEL_SERVICE_NAME" not in os.environ and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        named[SERVICE_NAME] = "twinserve"
    # The server ends it, with a bound on the time that it takes.
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _exporter() -> SpanExporter | None:
    """Return what OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL ask for."""
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if kind == "none":
        return None
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if kind != "otlp":
        raise ConfigError(f"OTEL_TRACES_EXPORTER is {kind!r:.40}; give otlp, console or none")
    protocol = os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as by_grpc

        return by_grpc.OTLPSpanExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as by_http

        return by_http.OTLPSpanExporter()
    raise ConfigError(
        f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r:.40}; give grpc or http/protobuf"
    )
