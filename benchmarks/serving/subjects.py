"""The twins that are served, as files: given, or made by `making`.

A row of the benchmark is one twin in one precision. all-MiniLM-L6-v2 cannot be made: without its
file its rows are left out.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Subject:
    """One twin file."""

    name: str  # tiny, minilm, resnet18 or resnet50
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
