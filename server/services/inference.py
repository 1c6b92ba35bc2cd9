"""The Open Inference Protocol's service: in the contract, and answered with a sentence so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twinserve.oip import inference_pb2, inference_pb2_grpc
from twinserve.server.services.calls import Context, not_built

_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def servicer() -> inference_pb2_grpc.GRPCInferenceServiceServicer:
    """Make a servicer that answers every method of the protocol as not built yet."""
    methods = {method.name: _refusing(method.name) for method in _SERVICE.methods}
    kind = type("InferenceService", (inference_pb2_grpc.GRPCInferenceServiceServicer,), methods)
    made: inference_pb2_grpc.GRPCInferenceServiceServicer = kind()
    return made


def _refusing(name: str) -> Callable[..., Any]:
    async def refuse(self: object, request: object, context: Context) -> None:
        await not_built(
            context,
            f"{name} of the Open Inference Protocol",
            "call twinserve.v1.EmbeddingService, or ask grpc.health.v1.Health",
        )

    return refuse
