"""The twin: from what serving sees to an embedding, for pictures, vectors and texts.

Both branches of a Siamese network are one twin, so there is one module, called once. It takes the
raw inputs of its contract, in the order of `feed.input_names`, and holds all arithmetic from there
to the embedding (pixel normalisation, pooling, unit length), so that the exported graph holds it
too and a client cannot get it wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twinserve.distance import Metric
from twinserve.manifest import TEXT_INPUTS, ImageInput, InputContract, TensorInput, TextInput
from twinserve.train.heads import Head, unit, wide
from twinserve.train.pooling import pool


class Twin(nn.Module):
    """Tensors in the order of `feed.input_names(contract)` -> float32 [batch, dimension].

    Args:
        contract: what it takes.
        dimension: of the embedding.
        metric: that embeddings are compared under.
        normalized: whether embeddings are scaled to unit length.
        truncations: smaller dimensions whose leading coordinates, renormalised, are of use.
        tokenizer: tokenizer.json of a text twin.
    """

    def __init__(
        self,
        *,
        contract: InputContract,
        dimension: int,
        metric: Metric,
        normalized: bool,
        truncations: tuple[int, ...] = (),
        tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        self.contract = contract
        self.dimension = dimension
        self.metric = metric
        self.normalized = normalized
        self.truncations = truncations
        self.tokenizer = tokenizer
        # Of an encoder made elsewhere: what it takes to build it again without its folder.
        self.blueprint: dict[str, Any] | None = None

    @property
    def variant(self) -> str:
        """What changes every embedding and is no weight; equal twins say the same."""
        return ""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embed one batch."""
        vectors = wide(self.vectors(inputs))
        return unit(vectors) if self.normalized else vectors

    def vectors(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the embeddings before they are scaled: float32 [batch, dimension]."""
        raise NotImplementedError


class ImageTwin(Twin):
    """uint8 pixels [batch, height, width, channels] -> float32 embeddings [batch, dimension].

    Args:
        body: float32 [batch, channels, height, width] -> float32 [batch, dimension].
        contract: what pixels it takes.
        dimension: see Twin.
        metric: see Twin.
        normalized: see Twin.
        truncations: see Twin.
        ink_inverted: whether brightness is turned around first.
        mean: per channel, of pixels in [0, 1] after any inversion.
        std: likewise.
    """

    contract: ImageInput
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        contract: ImageInput,
        dimension: int,
        metric: Metric,
        normalized: bool,
        truncations: tuple[int, ...] = (),
        ink_inverted: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            contract=contract,
            dimension=dimension,
            metric=metric,
            normalized=normalized,
            truncations=truncations,
        )
        self.body = body
        self.ink_inverted = ink_inverted
        # Whether a picture is embedded together with its mirror image.
        self.mirror_summed = False
        channels = contract.channels
        self.register_buffer("mean", torch.tensor(mean or [0.0] * channels).view(1, channels, 1, 1))
        self.register_buffer("std", torch.tensor(std or [1.0] * channels).view(1, channels, 1, 1))

    @property
    def variant(self) -> str:
        """What is done to pixels is no weight, but changes every embedding as one would."""
        summed = ", mirror_summed" if self.mirror_summed else ""
        return f"ink_inverted {self.ink_inverted}{summed}"

    def vectors(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Embed uint8 pixels [batch, height, width, channels], unscaled."""
        (pixels,) = inputs
        prepared = self.prepare(pixels)
        embeddings: Tensor = self.body(prepared)
        if self.mirror_summed and not self.training:
            # In training each picture is seen from one side, which costs half as much.
            embeddings = embeddings + self.body(prepared.flip(3))
        return embeddings

    def prepare(self, pixels: Tensor) -> Tensor:
        """Normalise pixels: uint8 [batch, h, w, channels] -> float32 [batch, channels, h, w]."""
        prepared = pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0
        if self.ink_inverted:
            prepared = 1.0 - prepared
        return (prepared - self.mean) / self.std


class TensorTwin(Twin):
    """Arrays of the contract's shape and type [batch, *shape] -> float32 [batch, dimension].

    Args:
        body: float32 [batch, *shape] -> float32 [batch, dimension].
        contract: what arrays it takes.
        dimension: see Twin.
        metric: see Twin.
        normalized: see Twin.
        truncations: see Twin.
        mean: float32 [*shape], subtracted first.
        std: float32 [*shape], divided by next.
    """

    contract: TensorInput
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        contract: TensorInput,
        dimension: int,
        metric: Metric,
        normalized: bool,
        truncations: tuple[int, ...] = (),
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        super().__init__(
            contract=contract,
            dimension=dimension,
            metric=metric,
            normalized=normalized,
            truncations=truncations,
        )
        self.body = body
        self.register_buffer("mean", torch.zeros(contract.shape) if mean is None else mean)
        self.register_buffer("std", torch.ones(contract.shape) if std is None else std)

    def vectors(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Embed arrays [batch, *shape], unscaled."""
        (rows,) = inputs
        embeddings: Tensor = self.body((rows.to(self.mean.dtype) - self.mean) / self.std)
        return embeddings


class TextTwin(Twin):
    """Token ids, mask and perhaps type ids, int64 [batch, length] -> float32 [batch, dimension].

    Args:
        encoder: called with the contract's inputs in their order; gives token states, float32
            [batch, length, width], or with no pooling a vector per text, float32 [batch, width].
        contract: which inputs, how many tokens.
        tokenizer: tokenizer.json.
        dimension: see Twin.
        metric: see Twin.
        normalized: see Twin.
        truncations: see Twin.
        pooling: modes of `pooling.pool`, their vectors put side by side in this order; () where
            the encoder pools by itself.
        head: what follows pooling: float32 [batch, pooled width] -> float32 [batch, dimension].

    Raises:
        ValueError: pooling without a mask among the contract's inputs.
    """

    contract: TextInput
    tokenizer: str

    def __init__(
        self,
        encoder: nn.Module,
        *,
        contract: TextInput,
        tokenizer: str,
        dimension: int,
        metric: Metric,
        normalized: bool,
        truncations: tuple[int, ...] = (),
        pooling: tuple[str, ...] = ("mean",),
        head: nn.Module | None = None,
    ) -> None:
        super().__init__(
            contract=contract,
            dimension=dimension,
            metric=metric,
            normalized=normalized,
            truncations=truncations,
            tokenizer=tokenizer,
        )
        if pooling and TEXT_INPUTS[1] not in contract.inputs:
            raise ValueError(f"pooling needs {TEXT_INPUTS[1]}; the inputs are {contract.inputs}")
        self.encoder = encoder
        self.pooling = pooling
        self.head = nn.Identity() if head is None else head

    @property
    def variant(self) -> str:
        """How tokens are pooled is no weight, but changes every embedding as one would."""
        return f"pooling {' '.join(self.pooling)}"

    def vectors(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Embed texts, unscaled."""
        states: Tensor = self.encoder(*inputs)
        if self.pooling:
            mask = inputs[self.contract.inputs.index(TEXT_INPUTS[1])]
            states = pool(states, mask, self.pooling)
        embeddings: Tensor = self.head(states)
        return embeddings


class Siamese(nn.Module):
    """One twin on two inputs, and a head that compares the two embeddings.

    The twin is called once on both inputs concatenated, so that batch norm sees one batch and
    forward(a, b) equals forward(b, a) for a symmetric head.
    """

    def __init__(self, twin: Twin, head: Head) -> None:
        super().__init__()
        self.twin = twin
        self.head = head

    def forward(
        self, first: Sequence[Tensor] | Tensor, second: Sequence[Tensor] | Tensor
    ) -> Tensor:
        """Compare corresponding rows of two batches -> the head's output [batch].

        Args:
            first: the twin's inputs in order, or its only one; texts padded to one length.
            second: likewise.
        """
        ones = (first,) if isinstance(first, Tensor) else first
        others = (second,) if isinstance(second, Tensor) else second
        embeddings = self.twin(*(torch.cat(pair) for pair in zip(ones, others, strict=True)))
        left, right = embeddings.split(len(ones[0]))
        compared: Tensor = self.head(left, right)
        return compared
