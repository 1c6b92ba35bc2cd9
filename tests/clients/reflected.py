"""A client that knows nothing but a server's address: everything else it asks by reflection.

Its messages live in a descriptor pool of their own, so they are not the generated ones.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


class Reflected:
    """A server as its reflection describes it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._described = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._described)

    def services(self) -> list[str]:
        """Name all services."""
        return list(self._described.get_services())

    def methods(self, service: str) -> list[MethodDescriptor]:
        """Describe all calls of a service."""
        return list(self._pool.FindServiceByName(service).methods)

    def call(self, service: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Make a unary call, in the JSON form of its messages."""
        described = self._pool.FindServiceByName(service).FindMethodByName(method)
        sent = json_format.ParseDict(request, GetMessageClass(described.input_type)())
        call = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )
        return json_format.MessageToDict(call(sent, timeout=30))
