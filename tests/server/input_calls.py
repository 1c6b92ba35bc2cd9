"""The calls of the contract that take an input, found in its descriptors, and ways to make them.

Walks every service of `twinserve.v1` and `twinserve.oip`, so that a call that is new in the
contract is found without anybody thinking of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_status import rpc_status

from tests.server import wire
from twinserve import oip, v1
from twinserve.v1 import shared_pb2

INPUT = shared_pb2.Input.DESCRIPTOR.full_name


def methods() -> Iterator[MethodDescriptor]:
    """Every method of every service in the contract."""
    for package in (v1, oip):
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith("_pb2"):
                file = importlib.import_module(f"{package.__name__}.{module.name}").DESCRIPTOR
                for service in file.services_by_name.values():
                    yield from service.methods


@dataclass(frozen=True)
class Place:
    """Where a method's request holds an input: the fields on the way to it, itself the last."""

    method: MethodDescriptor
    steps: tuple[FieldDescriptor, ...]

    @property
    def call(self) -> str:
        """The method's name."""
        return str(self.method.name)

    def path(self, index: int = 0) -> str:
        """Write the place as errors name it, in the `index`th entry of the call's list."""
        return ".".join(
            f"{step.name}[{index}]" if step.is_repeated else str(step.name) for step in self.steps
        )

    @property
    def listed(self) -> str:
        """Name the field that lists the call's items; "" where it takes one."""
        path, bracket, _ = self.path().partition("[")
        return path if bracket else ""

    def __str__(self) -> str:
        return f"{self.call} {self.path()}"


def places() -> list[Place]:
    """Every place for an input in every request."""
    return [
        Place(method, steps)
        for method in methods()
        for steps in _walk(method.input_type, (), frozenset())
    ]


def _walk(
    message: Descriptor, steps: tuple[FieldDescriptor, ...], seen: frozenset[str]
) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in message.fields:
        kind = field.message_type
        if kind is None or kind.full_name in seen:
            continue
        if kind.full_name == INPUT:
            yield (*steps, field)
        else:
            yield from _walk(kind, (*steps, field), seen | {message.full_name})


def plant(message: Message, place: Place, bad: shared_pb2.Input, good: shared_pb2.Input) -> None:
    """Put `bad` into one more entry of a request; inputs beside it in the entry become `good`."""
    _plant(message, place.steps, bad, good)


def _plant(
    message: Message,
    steps: tuple[FieldDescriptor, ...],
    bad: shared_pb2.Input,
    good: shared_pb2.Input,
) -> None:
    step, *rest = steps
    inside: Any = getattr(message, step.name)
    target = inside.add() if step.is_repeated else inside
    if rest:
        _plant(target, tuple(rest), bad, good)
        return
    target.CopyFrom(bad)
    for field in message.DESCRIPTOR.fields:
        beside = field.message_type is not None and field.message_type.full_name == INPUT
        if beside and field.name != step.name and not field.is_repeated:
            getattr(message, field.name).CopyFrom(good)


def send(
    channel: grpc.Channel, method: MethodDescriptor, request: Message, timeout: float = 60
) -> Message:
    """Make a call with one request; of a stream, return the first reply.

    Raises:
        grpc.RpcError: it failed.
    """
    name = f"/{method.containing_service.full_name}/{method.name}"
    read = GetMessageClass(method.output_type).FromString
    write = type(request).SerializeToString
    if not method.client_streaming:
        reply: Message = channel.unary_unary(name, write, read)(request, timeout=timeout)
        return reply
    return next(channel.stream_stream(name, write, read)(iter([request]), timeout=timeout))


def status_of(
    channel: grpc.Channel, method: MethodDescriptor, request: Message, timeout: float = 60
) -> status_pb2.Status:
    """Make a call and return the status it ends with: code 0 is OK, a stream's is its reply's.

    A stream goes on where all items of a message fail; then it is the first item's.
    """
    try:
        reply: Any = send(channel, method, request, timeout)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        if status is None:
            code = error.code()
            return status_pb2.Status(code=code.value[0], message=str(error.details()))
        return status
    failed: list[status_pb2.Status] = []
    if "error" in reply.DESCRIPTOR.fields_by_name:
        failed = [reply.error] if reply.HasField("error") else []
    elif method.server_streaming and all(one.HasField("error") for one in reply.results):
        failed = [reply.results[0].error]
    return failed[0] if failed else status_pb2.Status()


def is_built(status: status_pb2.Status) -> bool:
    """Whether the call exists in this release."""
    return (
        status.code != grpc.StatusCode.UNIMPLEMENTED.value[0] or wire.reason(status) != "NOT_BUILT"
    )
