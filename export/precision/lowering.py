"""From an fp32 graph to one in another precision that passes its gate.

In: the graph, and the `Reference` that it set on its evidence. Out: a `Lowered` graph with the
gate's report, or `GateFailed` with what failed. Where int8 fails, the layers that do most harm are
left in float, step by step, until it passes or there is too little left to gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twinserve.errors import ConfigError, GateFailed
from twinserve.export.evidence import Lowered, Reference
from twinserve.export.precision.figures import Quality, rounded
from twinserve.export.precision.fp16 import to_fp16
from twinserve.export.precision.int8 import Quantiser
from twinserve.export.precision.quality import Judge
from twinserve.export.precision.sensitivity import Block, worst_first
from twinserve.export.session import GraphSession, embed_all

# With less of the multiply-adds in int8, casts eat the rest of the gain.
LEAST_SHARE = 0.5
# A form with less int8 work than this per row is no faster: measured, products of 80,000 took as
# long in int8 as in float, those of 330,000 two thirds of it. It is made only if the file shrinks.
LEAST_MULTIPLY_ADDS = 100_000
LARGEST_SIZE = 0.9  # of the fp32 graph's, for a file that counts as smaller


def lower(precision: str, graph: bytes, reference: Reference) -> Lowered:
    """Return the graph in `precision`.

    Args:
        precision: fp16 or int8.
        graph: serialised in fp32.
        reference: of that graph.

    Raises:
        GateFailed: no form of it passes the gate.
        ConfigError: another precision.
    """
    if precision == "fp16":
        return _fp16(graph, reference)
    if precision == "int8":
        return _int8(graph, reference)
    raise ConfigError(f"precision is {precision!r}; a graph can be lowered to fp16 and int8")


def _fp16(graph: bytes, reference: Reference) -> Lowered:
    model, kept = to_fp16(graph, reference.facts.contract, reference.ranges)
    quality = _judged(model, reference, Judge("fp16", reference))
    if quality.failures:
        raise _refusal("fp16", quality)
    made = {"method": "fp16", "float32_nodes_for_range": kept}
    return Lowered(model, {"made": made, **quality.to_dict()})


def _int8(graph: bytes, reference: Reference) -> Lowered:
    """Quantise all candidates; where that fails the gate, ever fewer, the worst left out first."""
    contract = reference.facts.contract
    quantiser = Quantiser(graph, contract, reference.ranges)
    judge = Judge("int8", reference)
    blocks: list[Block] | None = None  # measured only where the first form fails
    in_float: list[str] = []
    trade: list[dict[str, Any]] = []
    while True:
        model = quantiser.quantise(in_float)
        quality = _judged(model, reference, judge)
        trade.append(_step(quantiser, in_float, quality))
        if not quality.failures:
            break
        if blocks is None:
            gate, source = reference.gate, reference.gate_embeddings
            blocks = worst_first(quantiser, contract, gate, source)
        block = blocks.pop(0) if blocks else None
        if block is None or quantiser.share([*in_float, *block.nodes]) < LEAST_SHARE:
            raise _refusal("int8", quality, trade)
        in_float += block.nodes
    _check_gain(model, graph, quantiser, in_float)
    made = {
        "method": "static QDQ, weights int8 per channel in 7 bits, activations uint8",
        "range_rows": quantiser.range_rows,
        "share_of_multiply_adds": trade[-1]["share_of_multiply_adds"],
        "trade": trade,
    }
    return Lowered(model, {"made": made, **quality.to_dict()})


def _check_gain(model: bytes, graph: bytes, quantiser: Quantiser, in_float: Sequence[str]) -> None:
    """Refuse a form that is neither faster nor smaller, such as that of averaged word vectors."""
    lowered = quantiser.share(in_float) * sum(quantiser.costs.values())
    size = len(model) / len(graph)
    if lowered < LEAST_MULTIPLY_ADDS and size > LARGEST_SIZE:
        raise GateFailed(
            f"nothing in this twin gains from int8: {lowered:,.0f} multiply-adds of a row would "
            f"run in it (it takes {LEAST_MULTIPLY_ADDS:,} to be faster) and the file would have "
            f"{size:.0%} of the fp32 file's size; serve the twin in fp32",
            metadata={"figure": "multiply_adds", "value": f"{lowered:.0f}"},
        )


def _step(quantiser: Quantiser, in_float: Sequence[str], quality: Quality) -> dict[str, Any]:
    return {
        "in_float": list(in_float),
        "share_of_multiply_adds": rounded(quantiser.share(in_float)),
        "cosine_mean": rounded(quality.value("cosine_mean")),
        **quality.plain("equal_error_rate_lost", "true_accept_rate_lost"),
        "failed": [str(figure) for figure in quality.failures],
    }


def _judged(model: bytes, reference: Reference, judge: Judge) -> Quality:
    session = GraphSession(model, reference.facts.contract)
    labelled = None if judge.rows is None else embed_all(session, judge.rows)
    return judge.quality(embed_all(session, reference.gate), labelled)


def _refusal(
    precision: str, quality: Quality, trade: Sequence[Mapping[str, Any]] = ()
) -> GateFailed:
    first = quality.failures[0]
    tried = ""
    if len(trade) > 1:
        tried = (
            f" (with {len(trade[-1]['in_float'])} layers left in float and "
            f"{trade[-1]['share_of_multiply_adds']:.0%} of the multiply-adds in {precision}; "
            "fewer would gain nothing)"
        )
    return GateFailed(
        f"the gate of {precision} failed: {'; '.join(map(str, quality.failures[:3]))}{tried}; "
        f"nothing was written in {precision}, serve the twin in fp32",
        metadata={"figure": first.name, "value": f"{first.value:.6g}"},
    )
