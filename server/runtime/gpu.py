"""Runs a twin on a graphics card: buffers that stay, copies that happen once, CUDA graphs.

In: rows in the host's memory. Out: embeddings there. Each bucket has its own input and output on
the card, bound once, so that a run is a copy there, the kernels, and a copy back. Where the graph
of the twin runs on the card as a whole, onnxruntime records each bucket's kernels as a CUDA graph
and replays them with one launch; where it does not, the runs are as ever and a log line says why.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve import manifest as manifests
from twinserve.errors import ManifestError
from twinserve.feed import Row, Rows, feed, input_names
from twinserve.manifest import InputContract, TextInput
from twinserve.server.runtime.buckets import Bucket, Buckets, blank_row, data_type_of, shape_of
from twinserve.server.runtime.planning import Setting
from twinserve.server.runtime.providers import CUDA, Device
from twinserve.server.runtime.running import Outputs
from twinserve.server.runtime.sessions import Library, Session, open_session

log = logging.getLogger(__name__)

# Runs before a CUDA graph is replayed: to allocate, to record, and once to see it work.
WARM_RUNS = 3
# The id of a run that neither records nor replays.
NO_GRAPH = -1


@dataclass(frozen=True)
class OnCard:
    """A session on a card, and whether it can record CUDA graphs."""

    session: Session
    graphs: bool
    why: str  # it cannot; "" where it can


def open_on_card(
    path: Path,
    device: Device,
    setting: Setting,
    library: Library,
    *,
    options: Mapping[str, str] | None = None,
    strict: bool = False,
) -> OnCard:
    """Open a twin for a card, with CUDA graphs where its graph allows them.

    Raises:
        ManifestError, ProviderUnavailable: as of `open_session`.
    """
    options = dict(options or {})
    if device.provider != CUDA:
        session = open_session(path, device, setting, library, options=options, strict=strict)
        return OnCard(session, False, f"{device.kind} launches its engine whole")
    if device.options.get("enable_cuda_graph") == "0":
        session = open_session(path, device, setting, library, options=options, strict=strict)
        return OnCard(session, False, "--provider-option enable_cuda_graph=0")
    if setting.runners > 1:
        session = open_session(path, device, setting, library, options=options, strict=strict)
        return OnCard(session, False, f"{setting.runners} runs at a time cannot share graphs")
    try:
        # A graph with nodes on the CPU, or with loops, is refused here by onnxruntime.
        session = open_session(
            path,
            device,
            setting,
            library,
            options={**options, "enable_cuda_graph": "1"},
            strict=strict,
        )
    except ManifestError as error:
        why = str(error.__cause__ or error)[:200]
        session = open_session(path, device, setting, library, options=options, strict=strict)
        log.warning("%s: no CUDA graphs: %s", path.name, why)
        return OnCard(session, False, why)
    return OnCard(session, True, "")


@dataclass
class _Bound:
    """One bucket's buffers on the card."""

    binding: Any
    inputs: dict[str, Any]
    output: Any
    options: Any = None


@dataclass
class _Slot:
    """What one run at a time has to itself."""

    bound: dict[Bucket, _Bound] = field(default_factory=dict)


class GpuRunning:
    """A session on a card with its buckets.

    Args:
        on_card: from `open_on_card`.
        contract: of the twin's input.
        dimension: of its embeddings.
        device: that the session runs on.
        library: that the session is of.
        buckets: its shapes.
        runners: runs at a time; each has its own buffers.
    """

    def __init__(
        self,
        on_card: OnCard,
        contract: InputContract,
        dimension: int,
        device: Device,
        library: Library,
        buckets: Buckets,
        runners: int = 1,
    ) -> None:
        self._session = on_card.session
        self._graphs = on_card.graphs
        self.no_graphs = on_card.why  # why nothing is recorded; "" where it is
        self._contract = contract
        self._dimension = dimension
        self._device = device
        self._library = library
        self._buckets = buckets
        self._plain = library.run_options({"gpu_graph_id": str(NO_GRAPH)}) if self._graphs else None
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._runners = runners
        for _ in range(runners):
            self._slots.put(_Slot())
        self.recorded = 0  # buckets that are replayed as CUDA graphs

    def prepare(self) -> None:
        """Run every usual bucket, so that no caller meets the search for kernels or a recording."""
        for number, bucket in enumerate(self._buckets.usual(), start=1):
            rows = [blank_row(self._contract, bucket.length)] * bucket.rows
            if self._graphs:
                self._record(bucket, number, rows)
            else:
                slots = [self._slots.get() for _ in range(self._runners)]
                try:
                    for slot in slots:
                        self._run(slot, bucket, rows)
                finally:
                    for slot in slots:
                        self._slots.put(slot)

    def run(self, rows: Rows) -> Outputs:
        """Embed rows prepared for the input contract: float32 [len(rows), dimension]."""
        texts = isinstance(self._contract, TextInput)
        bucket = self._buckets.of(len(rows), max(map(len, rows)) if texts else 1)
        slot = self._slots.get()
        try:
            return self._run(slot, bucket, rows)
        finally:
            self._slots.put(slot)

    def _run(self, slot: _Slot, bucket: Bucket, rows: Rows) -> Outputs:
        bound = slot.bound.get(bucket)
        if bound is None:
            bound = slot.bound[bucket] = self._bind(bucket)
        for name, array in padded(rows, self._contract, bucket).items():
            bound.inputs[name].update_inplace(array)
        self._session.run_with_iobinding(bound.binding, bound.options)
        outputs: Outputs = bound.output.numpy()[: len(rows)]
        return outputs

    def _bind(self, bucket: Bucket) -> _Bound:
        """Give a bucket its buffers, whose addresses a CUDA graph remembers."""
        card = self._device.index
        shape = shape_of(self._contract, bucket)
        data_type = data_type_of(self._contract)
        inputs = {
            name: self._library.device_array(shape, data_type, card)
            for name in input_names(self._contract)
        }
        output = self._library.device_array((bucket.rows, self._dimension), np.float32, card)
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, array)
        binding.bind_ortvalue_output(manifests.OUTPUT, output)
        return _Bound(binding, inputs, output, self._plain)

    def _record(self, bucket: Bucket, number: int, rows: list[Row]) -> None:
        slot = self._slots.get()
        try:
            self._run(slot, bucket, rows)  # as ever: a fault of the twin is its own
            bound = slot.bound[bucket]
            bound.options = self._library.run_options({"gpu_graph_id": str(number)})
            try:
                for _ in range(WARM_RUNS):
                    self._run(slot, bucket, rows)
            except Exception as error:  # onnxruntime's own exceptions share no base class
                bound.options = self._plain
                log.warning(
                    "no CUDA graph for %d rows of length %d: %s",
                    bucket.rows, bucket.length, str(error)[:200],
                )  # fmt: skip
            else:
                self.recorded += 1
        finally:
            self._slots.put(slot)


def padded(rows: Rows, contract: InputContract, bucket: Bucket) -> dict[str, NDArray[Any]]:
    """Lay rows out as a whole bucket: the first row again for those that are missing.

    A row of zeros would do as well for pictures, but divides by zero where texts are averaged.
    """
    arrays = feed(rows, contract)
    laid = {}
    for name, array in arrays.items():
        shape = shape_of(contract, bucket)
        whole: NDArray[Any]
        if array.shape == shape:
            whole = np.ascontiguousarray(array)
        else:
            fill = contract.pad_id if name == "input_ids" and isinstance(contract, TextInput) else 0
            whole = np.full(shape, fill, array.dtype)
            whole[tuple(slice(0, size) for size in array.shape)] = array
            whole[len(array) :] = whole[0]
        laid[name] = whole
    return laid
