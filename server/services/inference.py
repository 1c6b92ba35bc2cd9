"""GRPCInferenceService: the Open Inference Protocol, version 2, over the same engines as Embed.

A client of that protocol (tritonclient, KServe's) sends tensors by the names that ModelMetadata
gives and gets the output `embedding`. Which tensors those are says `inference_tensors`, which
parameters `inference_parameters`; docs/inference-protocol.md tells both to clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress

from twinserve import __version__
from twinserve.errors import FailedPrecondition, InvalidInput, ModelNotFound, TwinserveError
from twinserve.oip import inference_pb2 as pb
from twinserve.oip import inference_pb2_grpc as rpc
from twinserve.server.config import Limits
from twinserve.server.engine import Engine
from twinserve.server.front import driven
from twinserve.server.gate import Gate
from twinserve.server.models.holding import Models
from twinserve.server.services import embedding_reply, inference_models, inference_tensors
from twinserve.server.services.calls import (
    Context,
    Encoded,
    caller_of,
    check_items,
    leave_front,
    unary,
)
from twinserve.server.services.inference_parameters import read_wishes
from twinserve.server.watching.metrics import Metrics

SERVER = "twinserve"
# Triton's names for what goes beyond the protocol; a client may rely on those named here alone.
EXTENSIONS = ("model_configuration", "parameters", "schedule_policy", "statistics")


class InferenceService(rpc.GRPCInferenceServiceServicer):
    """Runs twins for clients of the protocol.

    Args:
        models: what is served.
        metrics: told of every call.
        gate: entered by every call that does work.
        limits: of one request.
        serving: whether the server takes calls: warmed up, and not stopping.
    """

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        gate: Gate,
        limits: Limits,
        serving: Callable[[], bool],
    ) -> None:
        self.models = models
        self.metrics = metrics
        self.gate = gate
        self.limits = limits
        self._serving = serving

    # The probes stay outside the gate: a server that stops says so, and is not in the way.

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._serving())

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        try:
            with self._using(request.name, request.version):
                return pb.ModelReadyResponse(ready=self._serving())
        except ModelNotFound:
            return pb.ModelReadyResponse(ready=False)

    @unary
    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=SERVER, version=__version__, extensions=EXTENSIONS)

    @unary
    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        with self._using(request.name, request.version) as engine:
            return inference_models.metadata_message(engine, self._versions(engine.name))

    @unary
    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        with self._using(request.name, request.version) as engine:
            config = inference_models.config_message(engine, self.limits)
            return pb.ModelConfigResponse(config=config)

    @unary
    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        if request.name:
            with self._using(request.name, request.version) as engine:
                names = [engine.name]
            versions = self._versions(engine.name)
            if request.version and len(versions) > 1:
                raise FailedPrecondition(
                    f"several versions of {engine.name} are served ({', '.join(versions)}) and "
                    "their figures are counted together; ask without a version",
                    field="version",
                )
        elif request.version:
            raise InvalidInput("version is given and name is not; give both", field="version")
        else:
            names = list(dict.fromkeys(engine.name for engine in self.models))
        response = pb.ModelStatisticsResponse()
        for name in names:
            with suppress(ModelNotFound):  # unloaded since
                version = self.models.resolve(name).manifest.version
                figures = self.metrics.figures(name)
                response.model_stats.append(
                    inference_models.statistics_message(name, version, figures)
                )
        return response

    @driven
    @unary
    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> Encoded:
        if request.inputs:
            await leave_front(context, next(iter(request.inputs[0].shape), 0))
        with self._using(request.model_name, request.model_version, "model_") as engine:
            manifest = engine.manifest
            wishes = read_wishes(request.parameters, manifest)
            if wishes.dimension is not None:
                engine.space_of(wishes.dimension, "parameters[dimensions]")
            inference_tensors.check_outputs(request)
            raws = inference_tensors.read_inputs(
                request, manifest, self.limits, wishes.prompt, wishes.truncate
            )
            embedded = await engine.embed(raws, wishes.of(caller_of(context)), wishes.dimension)
            self.metrics.embedded(engine.name, embedded.preprocess, embedded.ride)
            check_items(_named(embedded.errors, request), len(raws), atomic=True)
            response = pb.ModelInferResponse(
                model_name=engine.name, model_version=manifest.version, id=request.id
            )
            response.parameters["space_id"].string_param = embedded.space_id
            inference_tensors.write_output(
                response, [one for one in embedded.outcomes if not isinstance(one, TwinserveError)]
            )
            timing = embedding_reply.timing(embedded.ride, embedded.preprocess)
            return Encoded(response.SerializeToString(), engine.name, timing_data=timing)

    def _using(self, name: str, version: str, prefix: str = "") -> AbstractContextManager[Engine]:
        """Hold the engine of a name or alias and, where one is given, a version.

        Raises:
            ModelNotFound: there is none; `prefix` stands before the request's fields name, version.
        """
        if not version:
            return self.models.using(name, f"{prefix}name")
        engine = self.models.resolve(name, f"{prefix}name")
        if engine.manifest.version == version:
            return self.models.using(engine.version, f"{prefix}version")
        # A name@version of another version finds nothing here, and the message says what there is.
        wanted = f"{name if '@' in name else engine.name}@{version}"
        return self.models.using(wanted, f"{prefix}version")

    def _versions(self, name: str) -> list[str]:
        return [engine.manifest.version for engine in self.models if engine.name == name]


def _named(
    errors: Mapping[int, TwinserveError], request: pb.ModelInferRequest
) -> dict[int, TwinserveError]:
    """Name the rows that failed; a fault of a parameter is the whole request's, and raised."""
    for error in errors.values():
        if error.field:
            raise error.at(f"parameters[{error.field}]")
    name = request.inputs[0].name
    return {row: inference_tensors.of_row(error, row, name) for row, error in errors.items()}
