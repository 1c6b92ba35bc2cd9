"""The twins that are served: made here with seeded weights, or given as files.

A row of the benchmark is one twin in one precision. What a twin computes is of no interest here,
only how long it takes, so conv4 and ResNet-18 are untrained and pass no gate. all-MiniLM-L6-v2
cannot be made: without its file its rows are left out.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinserve import manifest
from twinserve.feed import Row
from twinserve.manifest import ImageInput, Manifest, TextInput
from twinserve.tokens import Tokenizer

TOKENS = 32
SEED = 11
RANGE_ROWS = 32


@dataclass(frozen=True)
class Subject:
    """One twin file."""

    name: str  # tiny, minilm or resnet18
    precision: str
    path: Path

    def __str__(self) -> str:
        return self.name if self.precision == "fp32" else f"{self.name} {self.precision}"

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The manifest in the file."""
        return manifest.read(self.path)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in the file, of a text twin."""
        text = manifest.read_tokenizer(self.path)
        contract = self.manifest.input
        return Tokenizer(text, contract) if text and isinstance(contract, TextInput) else None

    def pixels(self, seed: int = SEED) -> Row:
        """Return one picture of noise: uint8 [height, width, channels]."""
        contract = self.manifest.input
        assert isinstance(contract, ImageInput), f"{self} takes no pictures"
        shape = (contract.height, contract.width, contract.channels)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    def text(self, tokens: int = TOKENS, seed: int = SEED) -> str:
        """Return a text of exactly so many tokens, of words that are one token each."""
        tokenizer = self.tokenizer
        assert tokenizer is not None, f"{self} takes no texts"
        known = words(self.path)
        around = len(tokenizer.encode(known[0]).ids) - 1
        chosen = np.random.default_rng(seed).choice(len(known), tokens - around)
        made = " ".join(known[i] for i in chosen)
        assert len(tokenizer.encode(made).ids) == tokens, f"{made!r} has not {tokens} tokens"
        return made

    def row(self) -> Row:
        """Return what one request of the single-item rows becomes before the model."""
        tokenizer = self.tokenizer
        return self.pixels() if tokenizer is None else tokenizer.encode(self.text()).ids


@functools.cache
def words(path: Path) -> list[str]:
    """Return the whole words in a text twin's vocabulary, in their order there."""
    from tokenizers import Tokenizer as Library

    text = manifest.read_tokenizer(path)
    assert text is not None, f"{path} has no tokenizer"
    found: dict[str, int] = Library.from_str(text).get_vocab()
    whole = [word for word in found if word.isascii() and word.isalpha() and len(word) > 2]
    return sorted((word for word in whole if word.islower()), key=found.__getitem__)


def made(folder: Path, name: str) -> list[Subject]:
    """Return conv4 ("tiny", 28x28) or ResNet-18 (224x224) in fp32 and int8, making them once."""
    paths = {precision: folder / f"{name}.{precision}.onnx" for precision in ("fp32", "int8")}
    if not all(path.is_file() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        _make(name, paths)
    return [Subject(name, precision, path) for precision, path in paths.items()]


def _make(name: str, paths: dict[str, Path]) -> None:
    # All that brings torch; a run on files that are there needs none of it.
    import torch

    from twinserve.distance import Metric
    from twinserve.export.precision.int8 import Quantiser
    from twinserve.export.to_onnx import to_onnx, weights_digest
    from twinserve.train.conv4 import conv4
    from twinserve.train.resnet import resnet
    from twinserve.train.twins import Twin

    torch.manual_seed(SEED)
    twin: Twin
    if name == "tiny":
        contract = ImageInput(28, 28, 1, "L")
        twin = conv4(contract, dimension=64, width=64, metric=Metric.COSINE, normalized=True)
    else:
        contract = ImageInput(224, 224, 3, "RGB")
        twin = resnet(18, contract, dimension=512, metric=Metric.COSINE, normalized=True)
    graph = to_onnx(twin.eval())
    digest = weights_digest(twin)
    described = Manifest(
        name=name,
        version="1",
        modality="image",
        input=contract,
        dimension=twin.dimension,
        normalized=twin.normalized,
        metric=twin.metric,
        space_id=manifest.space_id(digest, contract, twin.dimension, twin.normalized),
        graph_digest=manifest.digest_of_graph(graph),
    )
    manifest.write_atomically(paths["fp32"], manifest.attach(graph, described))
    shape = (RANGE_ROWS, contract.height, contract.width, contract.channels)
    noise = np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)
    lowered = Quantiser(graph, contract, noise).quantise()
    described = dataclasses.replace(
        described, precision="int8", graph_digest=manifest.digest_of_graph(lowered)
    )
    manifest.write_atomically(paths["int8"], manifest.attach(lowered, described))
