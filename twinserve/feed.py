"""From prepared rows to what one run of a graph takes; the same in training, export and serving.

In: rows, one per item: uint8 pixels [height, width, channels], an array of the contract's shape, or
the int64 ids of a text's tokens [length]. Out: arrays by the names of the graph's inputs. Texts of
a batch are padded at the end to the longest of them, and the mask says which ids count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.manifest import IMAGE, TENSOR, ImageInput, InputContract, TextInput

Row = NDArray[Any]
Rows = Sequence[Row] | NDArray[Any]
Feed = dict[str, NDArray[Any]]


def input_names(contract: InputContract) -> tuple[str, ...]:
    """Return the names of the graph's inputs, in order."""
    if isinstance(contract, TextInput):
        return contract.inputs
    return (IMAGE,) if isinstance(contract, ImageInput) else (TENSOR,)


def feed(rows: Rows, contract: InputContract) -> Feed:
    """Lay rows out as one batch.

    Args:
        rows: at least one, prepared for this contract.
        contract: of the twin.

    Returns:
        image or tensor: [batch, ...]; text: int64 [batch, longest] per name.
    """
    if not isinstance(contract, TextInput):
        batch = rows if isinstance(rows, np.ndarray) else np.stack(rows)
        return {input_names(contract)[0]: batch}
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]  # [batch, longest]
    ids = np.full(mask.shape, contract.pad_id, dtype=np.int64)
    ids[mask] = np.concatenate(list(rows))
    known = {
        "input_ids": ids,
        "attention_mask": mask.astype(np.int64),
        # Every input is a first sentence.
        "token_type_ids": np.zeros_like(ids),
    }
    return {name: known[name] for name in contract.inputs}
