"""Twins made here with seeded weights, other precisions of a twin, and other versions of it.

What a twin computes is of no interest to the benchmarks, only how long it takes: what is made here
is untrained, and passes no gate. A file that is there is taken as it is; only the making brings
torch and onnx.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from benchmarks.serving.subjects import SEED, TOKENS, Subject
from twinserve import manifest
from twinserve.feed import Rows
from twinserve.manifest import ImageInput, Manifest

NAMES = ("tiny", "resnet18", "resnet50")
RANGE_ROWS = 32  # whose values are watched for another precision


def made(folder: Path, name: str, version: int = 1) -> Subject:
    """Return conv4 ("tiny", 28x28), ResNet-18 or ResNet-50 (224x224) in fp32.

    Each version has weights of its own.
    """
    stem = name if version == 1 else f"{name}.v{version}"
    path = folder / f"{stem}.fp32.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        manifest.write_atomically(path, _made(name, version))
    return Subject(name, "fp32", path)


def lowered(subject: Subject, precision: str, folder: Path) -> Subject:
    """Return an fp32 twin in fp16 or int8."""
    stem = subject.path.name.removesuffix(".onnx").removesuffix(".fp32")
    path = folder / f"{stem}.{precision}.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        manifest.write_atomically(path, _lowered(subject, precision))
    return Subject(subject.name, precision, path)


def renumbered(subject: Subject, version: str, path: Path) -> Subject:
    """Write the same graph under another version."""
    described = dataclasses.replace(subject.manifest, version=version)
    tokenizer = manifest.read_tokenizer(subject.path)
    path.write_bytes(manifest.attach(subject.path.read_bytes(), described, tokenizer))
    return Subject(subject.name, subject.precision, path)


def _made(name: str, version: int) -> bytes:
    import torch

    from twinserve.distance import Metric
    from twinserve.export.to_onnx import to_onnx, weights_digest
    from twinserve.train.conv4 import conv4
    from twinserve.train.resnet import resnet
    from twinserve.train.twins import Twin

    torch.manual_seed(SEED + version - 1)
    twin: Twin
    if name == "tiny":
        contract = ImageInput(28, 28, 1, "L")
        twin = conv4(contract, dimension=64, width=64, metric=Metric.COSINE, normalized=True)
    else:
        contract = ImageInput(224, 224, 3, "RGB")
        depth = int(name.removeprefix("resnet"))
        twin = resnet(depth, contract, dimension=512, metric=Metric.COSINE, normalized=True)
    graph = to_onnx(twin.eval())
    digest = weights_digest(twin)
    described = Manifest(
        name=name,
        version=str(version),
        modality="image",
        input=contract,
        dimension=twin.dimension,
        normalized=twin.normalized,
        metric=twin.metric,
        space_id=manifest.space_id(digest, contract, twin.dimension, twin.normalized),
        graph_digest=manifest.digest_of_graph(graph),
    )
    return manifest.attach(graph, described)


def _lowered(subject: Subject, precision: str) -> bytes:
    from twinserve.export.precision.fp16 import to_fp16
    from twinserve.export.precision.int8 import Quantiser

    graph, contract = subject.path.read_bytes(), subject.manifest.input
    if precision == "fp16":
        graph, _ = to_fp16(graph, contract, _rows(subject))
    else:
        graph = Quantiser(graph, contract, _rows(subject)).quantise()
    described = dataclasses.replace(
        subject.manifest, precision=precision, graph_digest=manifest.digest_of_graph(graph)
    )
    return manifest.attach(graph, described, manifest.read_tokenizer(subject.path))


def _rows(subject: Subject) -> Rows:
    """Return noise, uint8 [rows, height, width, channels], or the tokens of texts."""
    contract = subject.manifest.input
    if isinstance(contract, ImageInput):
        shape = (RANGE_ROWS, contract.height, contract.width, contract.channels)
        return np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    texts = [subject.text(TOKENS, SEED + number) for number in range(RANGE_ROWS)]
    return [tokenizer.encode(text).ids for text in texts]
