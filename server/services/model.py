"""ModelService: what is served, what really runs it, and changing that while serving.

Changes block (they load, wait for calls, and write to the disk), so they run in threads: loads and
unloads in one of their own, where they wait for each other, the quick ones beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from twinserve.errors import BadPageToken
from twinserve.manifest import OperatingPoint
from twinserve.server import paging
from twinserve.server.gate import Gate
from twinserve.server.models.changes import ModelChanges
from twinserve.server.models.holding import Models
from twinserve.server.models.shadow import Report
from twinserve.server.models.table import Served, Table
from twinserve.server.services import codec
from twinserve.server.services.calls import Context, unary
from twinserve.server.watching.metrics import Metrics
from twinserve.v1 import model_pb2, shared_pb2
from twinserve.v1 import model_service_pb2 as pb
from twinserve.v1 import model_service_pb2_grpc as rpc

Result = TypeVar("Result")

_MODALITIES = {
    "image": shared_pb2.MODALITY_IMAGE,
    "text": shared_pb2.MODALITY_TEXT,
    "tensor": shared_pb2.MODALITY_TENSOR,
}


class ModelService(rpc.ModelServiceServicer):
    """Lists and changes models; see the contract for what each call promises.

    Args:
        models: what is served.
        changes: makes the changes of it.
        metrics: told of every call.
        gate: that every call passes.
        loads: one thread, for what takes seconds.
        threads: for what is quick.
    """

    def __init__(
        self,
        models: Models,
        changes: ModelChanges,
        metrics: Metrics,
        gate: Gate,
        loads: Executor,
        threads: Executor,
    ) -> None:
        self.models = models
        self.changes = changes
        self.metrics = metrics
        self.gate = gate
        self._loads = loads
        self._threads = threads

    @unary
    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        size = paging.size(request.page_size, 100, 1000)
        after = paging.decode(request.page_token, b"models")
        table = self.models.table
        found = list(table.served)
        versions = [one.engine.version for one in found]
        if after and after not in versions:
            raise BadPageToken(
                "page_token names a model that is served no more; start from the first page",
                field="page_token",
            )
        found = found[versions.index(after) + 1 if after else 0 :]
        response = pb.ListModelsResponse(models=[self._message(one, table) for one in found[:size]])
        if len(found) > size:
            response.next_page_token = paging.encode(b"models", found[size - 1].engine.version)
        return response

    @unary
    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        table = self.models.table
        return pb.GetModelResponse(model=self._message(table.find(request.name, "name"), table))

    @unary
    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> pb.LoadModelResponse:
        served = await self._run(
            self._loads,
            lambda: self.changes.load(
                request.file, request.name, list(request.aliases), force=request.force
            ),
        )
        return pb.LoadModelResponse(model=self._message(served, self.models.table))

    @unary
    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        await self._run(
            self._loads,
            lambda: self.changes.unload(request.name, request.version, force=request.force),
        )
        return pb.UnloadModelResponse()

    @unary
    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        served = await self._run(
            self._threads,
            lambda: self.changes.set_alias(
                request.alias, request.name, request.version, force=request.force
            ),
        )
        return pb.SetAliasResponse(model=self._message(served, self.models.table))

    @unary
    async def DeleteAlias(
        self, request: pb.DeleteAliasRequest, context: Context
    ) -> pb.DeleteAliasResponse:
        await self._run(
            self._threads, lambda: self.changes.delete_alias(request.alias, force=request.force)
        )
        return pb.DeleteAliasResponse()

    @unary
    async def StartShadow(
        self, request: pb.StartShadowRequest, context: Context
    ) -> pb.StartShadowResponse:
        shadow = await self._run(
            self._threads,
            lambda: self.changes.start_shadow(request.candidate, request.model, request.share),
        )
        return pb.StartShadowResponse(shadow=_shadow(shadow.report()))

    @unary
    async def StopShadow(
        self, request: pb.StopShadowRequest, context: Context
    ) -> pb.StopShadowResponse:
        report = await self._run(self._threads, lambda: self.changes.stop_shadow(request.candidate))
        return pb.StopShadowResponse(shadow=_shadow(report))

    async def _run(self, executor: Executor, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    def _message(self, served: Served, table: Table) -> model_pb2.Model:
        engine, origin = served.engine, served.origin
        manifest = engine.manifest
        calibration = manifest.calibration(manifest.dimension)
        message = model_pb2.Model(
            name=engine.name,
            version=manifest.version,
            aliases=table.aliases_of(engine.version),
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
            file="" if origin is None else origin.file,
            file_digest="" if origin is None else origin.digest,
        )
        shadow = self.changes.shadows().get(engine.version)
        if shadow is not None:
            message.shadow.CopyFrom(_shadow(shadow.report()))
        return message


def _shadow(report: Report) -> model_pb2.Shadow:
    return model_pb2.Shadow(
        candidate=report.candidate,
        model=report.model,
        share=report.share,
        calls=report.calls,
        items=report.items,
        skipped=report.skipped,
        failed=report.failed,
        first_error=report.first_error,
        comparable=report.comparable,
        mean_drift=report.mean_drift,
        worst_drift=report.worst_drift,
        pairs=report.pairs,
        pairs_decided_otherwise=report.pairs_decided_otherwise,
        pairs_matched=report.pairs_matched,
        false_accept_rate=report.false_accept_rate,
        model_p50_seconds=report.model_p50,
        model_p99_seconds=report.model_p99,
        candidate_p50_seconds=report.candidate_p50,
        candidate_p99_seconds=report.candidate_p99,
    )


def _point(point: OperatingPoint, classes: int) -> model_pb2.OperatingPoint:
    return model_pb2.OperatingPoint(
        false_accept_rate=point.false_accept_rate,
        false_accept_rate_upper=point.false_accept_rate_upper,
        threshold=point.threshold,
        true_accept_rate=point.true_accept_rate,
        classes=classes,
    )
