"""Which parts of a graph suffer most from int8, measured one at a time.

In: a `Quantiser`, held-out rows and the source's embeddings of them. Out: blocks of neighbouring
nodes with the harm that each does alone, as the cosine it costs. There are at most `BLOCKS` blocks,
whatever the depth, so that the cost is bounded by a number of runs and no clock decides any bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twinserve.distance import Embeddings, Metric, paired
from twinserve.export.precision.int8 import Quantiser
from twinserve.export.session import GraphSession, embed_all
from twinserve.feed import Rows
from twinserve.manifest import InputContract

BLOCKS = 24
# So many rows tell one block from another; the gate sees more of them.
ROWS = 48


@dataclass(frozen=True)
class Block:
    """Neighbouring nodes that stay in float or go to int8 together."""

    nodes: tuple[str, ...]
    harm: float  # mean of 1 - cosine to the source, when only these are in int8
    share: float  # of the graph's multiply-adds


def worst_first(
    quantiser: Quantiser, contract: InputContract, rows: Rows, source: Embeddings
) -> list[Block]:
    """Measure each block's harm, and order them by it, falling.

    Args:
        quantiser: of the graph.
        contract: of the rows.
        rows: held-out ones; the first `ROWS` are used.
        source: float32 [n, dimension], the fp32 graph's embeddings of the rows.
    """
    rows, source = rows[:ROWS], source[:ROWS]
    total = sum(quantiser.costs.values())
    blocks = []
    for nodes in blocks_of(quantiser.candidates):
        others = [name for name in quantiser.candidates if name not in nodes]
        session = GraphSession(quantiser.quantise(others), contract)
        apart = paired(embed_all(session, rows), source, Metric.COSINE)
        # A form that breaks down altogether does more harm than any number.
        harm = float(apart.mean()) if np.isfinite(apart).all() else float("inf")
        share = sum(quantiser.costs[name] for name in nodes) / total
        blocks.append(Block(nodes, harm, share))
    return sorted(blocks, key=lambda block: -block.harm)


def blocks_of(nodes: Sequence[str]) -> list[tuple[str, ...]]:
    """Cut nodes into at most `BLOCKS` runs of neighbours, as equal in length as can be."""
    cuts = np.array_split(np.arange(len(nodes)), min(BLOCKS, len(nodes)))
    return [tuple(nodes[index] for index in cut.tolist()) for cut in cuts]
