"""A gRPC server in this process that answers as a test tells it, and remembers what it was asked.

It speaks the real contract over a real port; only the thinking is left out. `on` gives a method the
answers of its coming calls, the last of which is repeated; an answer is a message, an error status,
or a function of the request. Of a method that gives many messages for one request, an answer is a
list of them, in which a status ends the stream.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from twinserve.v1 import embedding_service_pb2, gallery_service_pb2, model_service_pb2

_FILES = (embedding_service_pb2, gallery_service_pb2, model_service_pb2, health_pb2)
_METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class FakeServer(grpc.GenericRpcHandler):
    """Answers calls from a script, and each message of a stream like a call."""

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, str]] = []
        # Methods of calls that are over, also while their answer is made.
        self.ended: list[str] = []
        self.finished: list[str] = []  # streams whose client said that it had sent all
        self._answers: dict[str, list[Any]] = {}
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        port = (
            self._server.add_insecure_port(address)
            if credentials is None
            else self._server.add_secure_port(address, credentials)
        )
        self.target = f"127.0.0.1:{port}"
        self._server.start()

    def on(self, method: str, *answers: Any) -> None:
        """Give a method, such as "Embed", its coming answers."""
        self._answers[method] = list(answers)

    def forget(self) -> None:
        """Be as new, for the next test; what a call of this one still does is not seen there."""
        self.requests, self.metadata, self.ended, self.finished = [], [], [], []
        self._answers = {}

    @contextlib.contextmanager
    def held(self, method: str) -> Iterator[None]:
        """Let a method's calls wait for as long as the block takes."""
        over = threading.Event()
        self.on(method, lambda request: over.wait(30) and None)
        try:
            yield
        finally:
            over.set()

    def asked(self, method: str) -> list[Any]:
        """Return the requests that a method received, in order."""
        return [request for name, request in self.requests if name == method]

    def stop(self) -> None:
        self._server.stop(None).wait()

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = _METHODS.get(handler_call_details.method)
        if method is None:
            return None
        codecs = {
            "request_deserializer": method.input_type._concrete_class.FromString,
            "response_serializer": lambda message: message.SerializeToString(),
        }
        answer = self._answer(method.name)
        if method.server_streaming and not method.client_streaming:
            return grpc.unary_stream_rpc_method_handler(
                lambda request, context: self._each(answer(request, context), context), **codecs
            )
        if not method.client_streaming:
            return grpc.unary_unary_rpc_method_handler(answer, **codecs)

        def answers(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            for request in requests:
                yield answer(request, context)
            self.finished.append(method.name)

        return grpc.stream_stream_rpc_method_handler(answers, **codecs)

    @staticmethod
    def _each(answers: list[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for answer in answers:
            if isinstance(answer, status_pb2.Status):
                context.abort_with_status(rpc_status.to_status(answer))
            yield answer

    def _answer(self, name: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            self.requests.append((name, request))
            self.metadata.append(dict(context.invocation_metadata()))
            context.add_callback(functools.partial(self.ended.append, name))
            waiting = self._answers.get(name)
            if not waiting:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f"the test gave {name} no answer")
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if callable(answer):
                answer = answer(request)
            if isinstance(answer, status_pb2.Status):
                context.abort_with_status(rpc_status.to_status(answer))
            return answer

        return handle


def status(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str = "",
    metadata: dict[str, str] | None = None,
    field: str = "",
    retry_after: float | None = None,
    resource: tuple[str, str] | None = None,
    domain: str = "twinserve",
) -> status_pb2.Status:
    """Return an error as the server's contract describes it."""
    details: list[Any] = []
    if reason:
        details.append(
            error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata or {})
        )
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after is not None:
        delay = duration_pb2.Duration(nanos=int(retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if resource:
        details.append(
            error_details_pb2.ResourceInfo(resource_type=resource[0], resource_name=resource[1])
        )
    packed = []
    for detail in details:
        entry = any_pb2.Any()
        entry.Pack(detail)
        packed.append(entry)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)
