"""A vision model as an ONNX graph: uint8 pixels in front, pooling and unit length behind."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from twinserve.errors import ConfigError
from twinserve.export.evidence import Source
from twinserve.export.imports.onnx_file import (
    SOURCE,
    OnnxFile,
    Original,
    Port,
    check_batch,
    choose_output,
    graph_digest,
    origin_of,
)
from twinserve.export.imports.source import Imported
from twinserve.export.imports.surgery import Surgery
from twinserve.feed import Rows
from twinserve.train.heads import unit
from twinserve.train.pretrained.folders import metric_of, truncations_of, unit_length_of
from twinserve.train.pretrained.pictures import Pictures, told
from twinserve.train.pretrained.settings import Answers, Settings

POOLINGS = ("cls", "mean", "max")
_USUAL_OUTPUTS = ("image_embeds", "embedding", "embeddings", "pooler_output")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_ARITHMETIC = ("Sub", "Mul", "Div", "Add", "BatchNormalization")
_BATCH = 16


def is_picture(port: Port) -> bool:
    """Whether an input looks like pixels: rank 4, with 1 or 3 channels first or last."""
    if port.kind not in (*_FLOATS, TensorProto.UINT8) or port.shape is None:
        return False
    return len(port.shape) == 4 and (port.shape[1] in (1, 3) or port.shape[3] in (1, 3))


def layout(port: Port) -> tuple[bool, int, tuple[int, int] | None]:
    """Return whether channels come first, how many, and height and width where they are fixed."""
    assert port.shape is not None
    first = port.shape[1] in (1, 3)
    channels, sides = (port.shape[1], port.shape[2:]) if first else (port.shape[3], port.shape[1:3])
    fixed = all(isinstance(side, int) for side in sides)
    return first, int(channels), (int(sides[0]), int(sides[1])) if fixed else None


def first_arithmetic(file: OnnxFile, port: Port) -> str | None:
    """Return what the graph does to its input first, where that is arithmetic with constants."""
    constants = {weight.name for weight in file.model.graph.initializer}
    value, found = port.name, []
    for node in file.model.graph.node:
        if node.op_type == "Constant":
            constants.update(node.output)
        elif value in node.input:
            others = [name for name in node.input if name not in (value, "")]
            if node.op_type in _ARITHMETIC and all(name in constants for name in others):
                found.append(node.op_type)
            elif node.op_type not in ("Cast", "Transpose", "Identity"):
                break
            value = node.output[0]
    return " and ".join(found) or None


def import_pictures(
    file: OnnxFile, prepared: Pictures, settings: Settings, answers: Answers, where: str
) -> Imported:
    """Make a twin of a graph that takes pixels.

    Args:
        file: the graph, with one input of which `is_picture` is true.
        prepared: how pictures become pixels.
        settings: flags.
        answers: is told what was taken.
        where: the file that says which dimensions it was trained for.

    Raises:
        ConfigError: a fixed batch, several outputs, or states that no pooling was named for.
        DataError: a graph that onnxruntime cannot run, or not at this size.
    """
    check_batch(file, settings)
    (port,) = file.inputs
    output = choose_output(file, settings, _USUAL_OUTPUTS)
    original = Original(file, output)
    first, _, _ = layout(port)
    height, width = prepared.seen

    def raw(rows: Rows) -> NDArray[np.float32]:
        pixels = np.asarray(rows)
        top = (pixels.shape[1] - height) // 2
        left = (pixels.shape[2] - width) // 2
        values = pixels[:, top : top + height, left : left + width]
        if port.kind != TensorProto.UINT8:
            scaled = values.astype(np.float32) * np.float32(prepared.scale)
            mean, std = (np.array(each, np.float32) for each in (prepared.mean, prepared.std))
            values = (scaled - mean) / std
        if first:
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        return original.run({port.name: values})

    contract = prepared.contract
    shape = raw(np.zeros((1, contract.height, contract.width, contract.channels), np.uint8)).shape
    pooling = _pooling(output, shape, settings)
    dimension = shape[1] if len(shape) in (2, 4) else shape[2]
    normalized = unit_length_of(settings, answers)
    metric = metric_of(None, settings, answers, "", normalized=normalized)
    truncations = truncations_of(None, dimension, settings, answers, where)

    def embed(rows: Rows) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(rows), _BATCH):
            vectors = torch.from_numpy(raw(rows[start : start + _BATCH]))
            if vectors.dim() == 4:
                vectors = vectors.flatten(2).transpose(1, 2)
            if pooling == "cls":
                vectors = vectors[:, 0]
            elif vectors.dim() == 3:
                vectors = vectors.mean(dim=1) if pooling == "mean" else vectors.amax(dim=1)
            found.append((unit(vectors) if normalized else vectors).numpy())
        return np.concatenate(found)

    surgery = Surgery(file.model)
    surgery.take_pixels(
        contract,
        port.name,
        port.kind,
        channels_first=first,
        crop=prepared.crop,
        scale=prepared.scale,
        mean=prepared.mean,
        std=prepared.std,
    )
    value = surgery.output(output.name, output.kind)
    if len(shape) == 4 and pooling is None:
        value = surgery.flat(value)
    elif len(shape) == 4:
        value = surgery.places(value)
    if pooling is not None:
        value = surgery.pool_places(value, pooling)
    if normalized:
        value = surgery.unit(value)
    graph = surgery.finish(value, dimension)
    return Imported(
        graph=graph,
        contract=contract,
        dimension=dimension,
        metric=metric,
        normalized=normalized,
        weights_digest=graph_digest(graph),
        source=Source(embed, SOURCE),
        truncations=truncations,
        origin={
            **origin_of(file, output),
            "pooling": [] if pooling is None else [pooling],
            "pixels": told(prepared),
        },
    )


def _pooling(output: Port, shape: tuple[int, ...], settings: Settings) -> str | None:
    """Return how places become one vector; None where there is one place."""
    if len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)):
        return None
    if len(shape) not in (3, 4):
        raise ConfigError(
            f"the output {output.name} has rank {len(shape)} ({list(shape)}), an embedding has "
            "rank 2 [batch, dimension], or 3 or 4 where it is to be pooled; name another with "
            "--output"
        )
    if settings.pooling is None:
        raise ConfigError(
            f"the output {output.name} gives a vector per place ({list(shape)}); say how they "
            f"become one with --pooling: {', '.join(POOLINGS)}"
        )
    if len(settings.pooling) != 1 or settings.pooling[0] not in POOLINGS:
        raise ConfigError(
            f"--pooling is {'+'.join(settings.pooling)}; of a graph's places it is one of "
            f"{', '.join(POOLINGS)}"
        )
    return settings.pooling[0]
