"""Stands in for onnxruntime with a graphics card, and remembers what it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.server.runtime.providers import CPU

DIMENSION = 4


@dataclass
class Node:
    op_type: str


@dataclass
class Argument:
    """An input or output of a graph."""

    name: str
    type: str
    shape: list[str | int]


@dataclass
class Part:
    ep_name: str
    kinds: list[str]

    def get_nodes(self) -> list[Node]:
        return [Node(kind) for kind in self.kinds]


class Array:
    """An OrtValue on the card: an address that stays, with what was copied there."""

    def __init__(self, shape: tuple[int, ...], data_type: Any, device: int) -> None:
        self.device = device
        self.data: NDArray[Any] = np.zeros(shape, data_type)

    def update_inplace(self, array: NDArray[Any]) -> None:
        assert array.shape == self.data.shape, "a buffer on the card has one shape"
        assert array.dtype == self.data.dtype
        self.data[...] = array

    def numpy(self) -> NDArray[Any]:
        return self.data.copy()


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, Array] = {}
        self.output: Array | None = None

    def bind_ortvalue_input(self, name: str, array: Array) -> None:
        self.inputs[name] = array

    def bind_ortvalue_output(self, name: str, array: Array) -> None:
        assert name == "embedding"
        self.output = array


@dataclass
class Opened:
    """A session: its output is the mean of each row's first input, in every coordinate."""

    entries: Mapping[str, str]
    threads: int
    chain: list[tuple[str, dict[str, str]]]
    running: list[str]
    parts: list[Part] | None
    refuses: Callable[[int], bool]  # told a graph's id, when it would record
    runs: list[tuple[tuple[int, ...], int | None]] = field(default_factory=list)
    bindings: list[Binding] = field(default_factory=list)

    @property
    def graphs(self) -> bool:
        return self.chain[0][1].get("enable_cuda_graph") == "1"

    def get_providers(self) -> list[str]:
        return self.running

    def get_provider_graph_assignment_info(self) -> list[Part]:
        if self.parts is None:
            raise RuntimeError("not recorded")
        return self.parts

    def io_binding(self) -> Binding:
        self.bindings.append(Binding())
        return self.bindings[-1]

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        graph = None if options is None else int(options["gpu_graph_id"])
        if self.graphs and graph is None:
            raise RuntimeError("a run without an id would record as graph 0")
        if graph is not None and graph >= 0 and self.refuses(graph):
            raise RuntimeError("operation not permitted when stream is capturing")
        first = next(iter(binding.inputs.values())).data
        self.runs.append((first.shape, graph))
        assert binding.output is not None
        means = first.reshape(len(first), -1).mean(axis=1)
        binding.output.data[...] = means[:, None]

    def run(self, names: list[str], feed: Mapping[str, NDArray[Any]], options: Any = None) -> Any:
        raise AssertionError("on a card everything is bound")

    def get_inputs(self) -> list[Any]:
        return [Argument("tensor", "tensor(float)", ["batch", 8])]

    def get_outputs(self) -> list[Any]:
        return [Argument("embedding", "tensor(float)", ["batch", 16])]


class Card:
    """The library.

    Args:
        running: the providers that sessions have.
        parts: who runs which nodes; None says nothing.
        whole: whether the graph may be recorded as a CUDA graph.
        refuses: ids of graphs that fail to record.
    """

    def __init__(
        self,
        *running: str,
        parts: list[Part] | None = None,
        whole: bool = True,
        refuses: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._running = [*running, CPU]
        self._parts = parts
        self._whole = whole
        self._refuses = refuses
        self.sessions: list[Opened] = []

    def session(
        self,
        path: Path,
        entries: Mapping[str, str],
        threads: int,
        chain: list[tuple[str, dict[str, str]]],
    ) -> Opened:
        opened = Opened(entries, threads, chain, self._running, self._parts, self._refuses)
        if opened.graphs and not self._whole:
            raise RuntimeError("not all compute graph nodes are on the CUDA provider")
        self.sessions.append(opened)
        return opened

    def run_options(self, entries: Mapping[str, str]) -> dict[str, str]:
        return dict(entries)

    def device_array(self, shape: tuple[int, ...], data_type: Any, device: int) -> Array:
        return Array(shape, data_type, device)
