"""The shapes that a GPU runs: rows and lengths rounded up to a few sizes.

On a CPU a batch is exactly what waits. On a GPU each new shape costs a search for kernels, a CUDA
graph fits one shape only, and TensorRT builds engines for ranges; there some rows of padding are
cheaper than another shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from twinserve.feed import Row, input_names
from twinserve.manifest import ImageInput, InputContract, TextInput

# Of texts in tokens; below it padding costs nothing on a GPU.
SHORTEST = 16


@dataclass(frozen=True)
class Bucket:
    """One shape of a run."""

    rows: int
    length: int = 1  # tokens that each row is padded to; 1 where rows are no texts

    @property
    def cells(self) -> int:
        """Rows times length."""
        return self.rows * self.length


@dataclass(frozen=True)
class Buckets:
    """The shapes of one twin.

    Args:
        max_batch: most rows of one run.
        max_tokens: most tokens of one run, padding included; a single longer text is one more.
        longest: tokens of the longest text; 1 where rows are no texts.
    """

    max_batch: int
    max_tokens: int
    longest: int = 1

    def of(self, rows: int, length: int) -> Bucket:
        """Return the smallest shape that holds so many rows of such a length."""
        return Bucket(
            next((size for size in self._rows() if size >= rows), rows),
            next((size for size in self._lengths() if size >= length), length),
        )

    def usual(self) -> list[Bucket]:
        """List the shapes that are made ready before anybody calls, the largest first.

        The largest first, since memory that held a large run also holds a small one.
        """
        shapes = [
            Bucket(rows, length)
            for length in self._lengths()
            for rows in self._rows()
            if rows == 1 or rows * length <= self.max_tokens or self.longest == 1
        ]
        return sorted(shapes, key=lambda one: (one.cells, one.rows), reverse=True)

    def _rows(self) -> Iterator[int]:
        size = 1
        while size < self.max_batch:
            yield size
            size *= 2
        yield self.max_batch

    def _lengths(self) -> Iterator[int]:
        size = SHORTEST
        while size < self.longest:
            yield size
            # Half steps: a third of a row is padding at most.
            if size * 3 // 2 < self.longest:
                yield size * 3 // 2
            size *= 2
        yield self.longest


def buckets_of(contract: InputContract, max_batch: int, max_tokens: int) -> Buckets:
    """Return the shapes of a twin with this input."""
    longest = contract.max_tokens if isinstance(contract, TextInput) else 1
    return Buckets(max_batch, max_tokens, longest)


def shape_of(contract: InputContract, bucket: Bucket) -> tuple[int, ...]:
    """Return the shape of each of the graph's inputs in a bucket."""
    match contract:
        case TextInput():
            return bucket.rows, bucket.length
        case ImageInput():
            return bucket.rows, contract.height, contract.width, contract.channels
    return bucket.rows, *contract.shape


def data_type_of(contract: InputContract) -> str:
    """Return the element type of the graph's inputs."""
    match contract:
        case TextInput():
            return "int64"
        case ImageInput():
            return "uint8"
    return contract.data_type


def blank_row(contract: InputContract, length: int = 1) -> Row:
    """Return a row of nothing: a black picture, zeros, or so many tokens of padding."""
    if isinstance(contract, TextInput):
        return np.full(length, contract.pad_id, np.int64)
    return np.zeros(shape_of(contract, Bucket(1))[1:], data_type_of(contract))


def tensorrt_profile(contract: InputContract, buckets: Buckets) -> dict[str, str]:
    """Say which shapes TensorRT's engine is to take; without it, each new one is built for.

    Returns:
        Options of its provider: the least, the usual and the largest shape of every input.
    """
    usual = buckets.of(max(1, buckets.max_batch // 4), min(32, buckets.longest))
    shapes = {
        "min": Bucket(1, 1),
        "opt": usual,
        "max": Bucket(buckets.max_batch, buckets.longest),
    }
    return {
        f"trt_profile_{which}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, shape_of(contract, bucket)))}"
            for name in input_names(contract)
        )
        for which, bucket in shapes.items()
    }
