"""What each kind of import brings: a graph in the twin's form, facts about it, and the model as it
was, which the gate holds the graph against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twinserve.distance import Metric
from twinserve.export.evidence import Source
from twinserve.manifest import InputContract


@dataclass(frozen=True, eq=False)
class Imported:
    """A model made elsewhere in the form of a twin, not gated yet."""

    graph: bytes  # fp32, inputs of `feed.input_names`, output `embedding`
    contract: InputContract
    dimension: int
    metric: Metric
    normalized: bool
    weights_digest: str
    source: Source
    tokenizer: str | None = None
    truncations: tuple[int, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)
