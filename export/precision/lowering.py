"""From an fp32 graph to one in another precision that passes its gate.

In: the graph, and the `Reference` that it set on its evidence. Out: a `Lowered` graph with the
gate's report, or `GateFailed` with what failed. Where int8 fails, the layers that do most harm are
left in float, step by step, until it passes or there is too little left to gain.
"""

from __future__ import annotations

from typing import Any

from twinserve.errors import ConfigError, GateFailed
from twinserve.export.evidence import Lowered, Reference
from twinserve.export.precision.figures import Quality
from twinserve.export.precision.fp16 import to_fp16
from twinserve.export.precision.int8 import prepare, quantise
from twinserve.export.precision.quality import Judge
from twinserve.export.session import GraphSession, embed_all


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
    _require("fp16", quality)
    made = {"method": "fp16", "float32_nodes_for_range": kept}
    return Lowered(model, {"made": made, **quality.to_dict()})


def _int8(graph: bytes, reference: Reference) -> Lowered:
    contract = reference.facts.contract
    prepared = prepare(graph, contract, reference.ranges)
    model = quantise(prepared, contract, reference.ranges)
    quality = _judged(model, reference, Judge("int8", reference))
    _require("int8", quality)
    made: dict[str, Any] = {
        "method": "static" if prepared.static else "dynamic",
        "share_of_multiply_adds": round(prepared.share(), 4),
    }
    return Lowered(model, {"made": made, **quality.to_dict()})


def _judged(model: bytes, reference: Reference, judge: Judge) -> Quality:
    session = GraphSession(model, reference.facts.contract)
    labelled = None if judge.rows is None else embed_all(session, judge.rows)
    return judge.quality(embed_all(session, reference.gate), labelled)


def _require(precision: str, quality: Quality) -> None:
    if quality.failures:
        first = quality.failures[0]
        raise GateFailed(
            f"the gate of {precision} failed: {'; '.join(map(str, quality.failures[:3]))}; nothing "
            f"was written in {precision}",
            metadata={"figure": first.name, "value": f"{first.value:.6g}"},
        )
