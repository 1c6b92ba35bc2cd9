"""What the Open Inference Protocol tells of a model: its tensors, its batching and its figures."""

from __future__ import annotations

from collections.abc import Sequence

from twinserve.manifest import Manifest
from twinserve.oip import inference_pb2 as pb
from twinserve.server.config import Limits
from twinserve.server.engine import Engine
from twinserve.server.services.inference_parameters import DEFAULT_LEVEL, LEVELS
from twinserve.server.services.inference_tensors import Port, inputs_of, output_of
from twinserve.server.watching.metrics import ModelFigures
from twinserve.server.watching.observations import Total

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"

_TYPES = {
    "UINT8": pb.TENSOR_DATA_TYPE_UINT8,
    "INT64": pb.TENSOR_DATA_TYPE_INT64,
    "FP32": pb.TENSOR_DATA_TYPE_FP32,
    "BYTES": pb.TENSOR_DATA_TYPE_STRING,
}


def metadata_message(engine: Engine, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """Describe a model's tensors, with the batch axis as -1.

    Args:
        engine: the model.
        versions: those of its name that are loaded.
    """
    return pb.ModelMetadataResponse(
        name=engine.name,
        versions=versions,
        platform=PLATFORM,
        inputs=[_tensor(port) for port in inputs_of(engine.manifest)],
        outputs=[_tensor(output_of(engine.manifest))],
        properties=properties(engine),
    )


def config_message(engine: Engine, limits: Limits) -> pb.ModelConfig:
    """Describe a model's batching, without the batch axis.

    A request may have `max_batch_size` rows; how many of them share a run is the batcher's choice
    alone, so no batch size is preferred.
    """
    output = output_of(engine.manifest)
    return pb.ModelConfig(
        name=engine.name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=limits.max_items,
        input=[
            pb.ModelInput(
                name=port.name,
                data_type=_TYPES[port.datatype],
                dims=port.shape,
                optional=port.optional,
            )
            for port in inputs_of(engine.manifest)
        ],
        output=[
            pb.ModelOutput(name=output.name, data_type=_TYPES[output.datatype], dims=output.shape)
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            priority_levels=len(LEVELS), default_priority_level=DEFAULT_LEVEL
        ),
        parameters={
            key: pb.ModelParameter(string_value=value) for key, value in properties(engine).items()
        },
    )


def properties(engine: Engine) -> dict[str, str]:
    """Return what a client should know of a twin beside its tensors."""
    manifest: Manifest = engine.manifest
    return {
        "space_id": manifest.space_id,
        "modality": manifest.modality,
        "metric": str(manifest.metric),
        "normalized": str(manifest.normalized).lower(),
        "dimensions": ",".join(str(dimension) for dimension in sorted(engine.spaces.values())),
        "precision": manifest.precision,
        "provider": engine.runner.device.provider,
    }


def statistics_message(name: str, version: str, figures: ModelFigures) -> pb.ModelStatistics:
    """Write what was counted of a model; seconds in, nanoseconds out."""
    return pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=round(figures.last_run * 1e3),
        inference_count=figures.rows,
        execution_count=figures.inference.count,
        inference_stats=pb.InferStatistics(
            success=_duration(figures.answered),
            fail=_duration(figures.failed),
            queue=_duration(figures.queue),
            compute_input=_duration(figures.preprocess),
            compute_infer=_duration(figures.riding),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=rows, compute_infer=_duration(total))
            for rows, total in figures.runs.items()
        ],
    )


def _tensor(port: Port) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=port.name, datatype=port.datatype, shape=(-1, *port.shape)
    )


def _duration(total: Total) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=round(total.sum * 1e9))
