"""What goes into a twin's file beside the graph: facts about it, and data to measure it on.

A run and an import bring the same four things (facts, a graph, a source to repeat, evidence), so
that one path, assemble.py, makes a file of both. `Reference` is what that path hands on to the
precisions: the fp32 graph's own embeddings and thresholds, which a candidate must live up to.
Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinserve.calibration import PairDistances
from twinserve.distance import Embeddings, Metric
from twinserve.export.pairs import Pairs
from twinserve.feed import Rows
from twinserve.manifest import Calibration, InputContract
from twinserve.train.data import Labelled
from twinserve.train.pairs import PairData, TripletData

Embedder = Callable[[Rows], Embeddings]


@dataclass(frozen=True)
class Facts:
    """What the manifest says of a twin and its graph cannot."""

    name: str
    version: str
    contract: InputContract
    dimension: int
    metric: Metric
    normalized: bool
    weights_digest: str  # sha256 of the fp32 source weights, and of whatever else shapes the space
    truncations: tuple[int, ...] = ()
    tokenizer: str | None = None  # tokenizer.json of a text twin
    training: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Source:
    """The twin before it became this graph; the gate holds the graph against it."""

    embed: Embedder  # rows -> float32 [n, dimension]
    name: str  # such as "torch 2.13.0"


@dataclass(frozen=True)
class OneShotSettings:
    """How many questions the report asks; see `train.evaluate.evaluate`."""

    ways: int = 20
    trials: int = 1000
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Evidence:
    """The data that a twin is measured on; no class of it may have shaped the weights."""

    gate: Rows  # real held-out rows, at least one; those of `calibrate` and `report` will do
    samples: str = "held out"  # where they are from, for the manifest's reader
    # Labelled items or judged pairs set the thresholds; with neither there are none.
    calibrate: Labelled | None = None
    pairs: Pairs | None = None
    kind: str = "run"  # of `calibrate`: the run's own part, or labels that the user gave
    default_far: float = 0.01
    report: Labelled | PairData | TripletData | None = None  # only measured
    one_shot: OneShotSettings = OneShotSettings()
    # Rows of the training part, to find the ranges of int8 on; None takes the gate's.
    ranges: Rows | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """The fp32 graph on its evidence, for candidates in other precisions to be held against."""

    facts: Facts
    gate: Rows
    gate_embeddings: Embeddings  # of the fp32 graph
    ranges: Rows
    calibrate: Labelled | None
    pairs: Pairs | None
    # Of labelled items or judged pairs alike, where there are any.
    calibrate_rows: Rows | None
    calibrate_embeddings: Embeddings | None  # of the fp32 graph
    calibrations: Sequence[Calibration]  # of the fp32 graph; empty without calibrating data
    # Both take a candidate's own embeddings of `calibrate_rows`: the distances of their pairs, and
    # thresholds, with the precision's name.
    distances: Callable[[Embeddings], PairDistances]
    recalibrated: Callable[[Embeddings, str], tuple[Calibration, ...]]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A graph in another precision that passed its gate: what `precision.lower` returns."""

    model: bytes
    parity: dict[str, Any]  # the gate's figures with their limits, for the manifest
