"""ModelService: what is served, and what really runs it."""

from __future__ import annotations

from twinserve.errors import BadPageToken
from twinserve.manifest import OperatingPoint
from twinserve.server import paging
from twinserve.server.engine import Engine
from twinserve.server.gate import Gate
from twinserve.server.metrics import Metrics
from twinserve.server.models import Models
from twinserve.server.services import codec
from twinserve.server.services.calls import Context, not_built, unary
from twinserve.v1 import model_pb2, shared_pb2
from twinserve.v1 import model_service_pb2 as pb
from twinserve.v1 import model_service_pb2_grpc as rpc

_MODALITIES = {
    "image": shared_pb2.MODALITY_IMAGE,
    "text": shared_pb2.MODALITY_TEXT,
    "tensor": shared_pb2.MODALITY_TENSOR,
}


class ModelService(rpc.ModelServiceServicer):
    """Lists models; see the contract for what each call promises."""

    def __init__(self, models: Models, metrics: Metrics, gate: Gate) -> None:
        self.models = models
        self.metrics = metrics
        self.gate = gate

    @unary
    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        size = paging.size(request.page_size, 100, 1000)
        after = paging.decode(request.page_token, b"models")
        found = list(self.models)
        versions = [engine.version for engine in found]
        if after and after not in versions:
            raise BadPageToken(
                "page_token names a model that is served no more; start from the first page",
                field="page_token",
            )
        found = found[versions.index(after) + 1 if after else 0 :]
        response = pb.ListModelsResponse(models=[_message(engine) for engine in found[:size]])
        if len(found) > size:
            response.next_page_token = paging.encode(b"models", found[size - 1].version)
        return response

    @unary
    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=_message(self.models.resolve(request.name, "name")))

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> pb.LoadModelResponse:
        await not_built(context, "LoadModel", "name the twin with --model and start the server")
        return pb.LoadModelResponse()

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        await not_built(context, "UnloadModel", "start the server without the model")
        return pb.UnloadModelResponse()


def _message(engine: Engine) -> model_pb2.Model:
    manifest = engine.manifest
    calibration = manifest.calibration(manifest.dimension)
    return model_pb2.Model(
        name=engine.name,
        version=manifest.version,
        modality=_MODALITIES[manifest.modality],
        dimension=manifest.dimension,
        truncations=manifest.truncations,
        metric=codec.metric_message(manifest.metric),
        normalized=manifest.normalized,
        space_id=manifest.space_id,
        precision=manifest.precision,
        provider=engine.runner.device.provider,
        operating_points=[]
        if calibration is None
        else [_point(point, calibration.classes) for point in calibration.points],
        manifest_json=manifest.to_json(),
    )


def _point(point: OperatingPoint, classes: int) -> model_pb2.OperatingPoint:
    return model_pb2.OperatingPoint(
        false_accept_rate=point.false_accept_rate,
        false_accept_rate_upper=point.false_accept_rate_upper,
        threshold=point.threshold,
        true_accept_rate=point.true_accept_rate,
        classes=classes,
    )
