"""A twin as onnxruntime runs it: the file checked, opened on its device, planned, warmed.

The one seam to the runtime. What it hands on is a function from rows to embeddings that may be
called from as many threads at a time as its plan says: onnxruntime shares no prepacked weights
between Python sessions, so there is one session, or two where lone runs pay for their own (see
`planning`), and `run()` releases the GIL. A text twin brings the tokenizer that its file holds, and
no text can reach an id that the graph does not know.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from twinserve.errors import ManifestError
from twinserve.feed import Row, Rows
from twinserve.manifest import TextInput
from twinserve.server.batching.costs import Measured
from twinserve.server.runtime import machine, measuring, planning
from twinserve.server.runtime.buckets import (
    Buckets,
    blank_row,
    buckets_of,
    tensorrt_profile,
)
from twinserve.server.runtime.gpu import GpuRunning, open_on_card
from twinserve.server.runtime.graph_check import check_graph, checked_manifest, tokenizer_of
from twinserve.server.runtime.measuring import Budget, SettingsBench
from twinserve.server.runtime.planning import Asked, Plan, Setting
from twinserve.server.runtime.providers import CPU, TENSORRT, Device
from twinserve.server.runtime.running import CpuRunning, Outputs, Running
from twinserve.server.runtime.sessions import Library, Onnxruntime, open_session, placement
from twinserve.tokens import Tokenizer

log = logging.getLogger(__name__)

# Tokens of the short texts that a twin is warmed with, and of those that settings are timed with.
_SHORT, _USUAL = 8, 32
# Of those that are timed for the batcher's table, the most frequent first; _ALL is the longest.
_ALL = 1 << 30
_LENGTHS = (_USUAL, 16, 64, _SHORT, 128, _ALL)
# A larger file is in memory once, however much sooner lone runs would be answered.
LONE_BYTES = 256 << 20
# A start is not held up for larger runs than take so many seconds.
_LONGEST_RUN = 2.0
# Time for that table: at the start, and beside versions that are serving.
_TABLE_SECONDS, _LIGHT_SECONDS = 1.0, 0.3


class Runner:
    """One loaded twin.

    Args:
        path: of the twin; onnxruntime opens it from the path, which does not hold the GIL.
        device: to run on; see `providers.choose`.
        asked: runners, threads and spinning, where the operator fixed them.
        like: the plan of the version before; it is taken over and nothing is timed, since other
            versions are serving meanwhile.
        strict: refuse a graph of which the CPU would run a part, on other devices.
        processors: to be kept busy; None are those that this process may use.
        library: onnxruntime, or what stands in for it.

    Raises:
        ManifestError: not a twin, a graph that does not fit its manifest, a text twin without its
            tokenizer, or pictures that were decoded otherwise than they are here.
        ProviderUnavailable: the device does not run.
    """

    def __init__(
        self,
        path: Path,
        device: Device,
        asked: Asked | None = None,
        *,
        like: Plan | None = None,
        strict: bool = False,
        processors: int | None = None,
        library: Library | None = None,
    ) -> None:
        self.path = path
        self.device = device
        self.manifest = checked_manifest(path)
        self.tokenizer = tokenizer_of(path, self.manifest)
        self._asked = asked or Asked()
        self._like = like
        self._strict = strict
        self._processors = processors or machine.processors().usable
        self._library = library or Onnxruntime()
        self._placed: float | None = None
        self.plan = like or self._first_plan()
        began = time.monotonic()
        self._running: Running = self._open(self.plan.setting, self._buckets(1, 1))
        self._opening = time.monotonic() - began
        self._lone: Running | None = None  # where lone runs have a session of their own
        self._twice = device.provider == CPU and path.stat().st_size <= LONE_BYTES
        if like is not None and like.lone is not None and self._twice:
            self._lone = self._open(like.lone, self._buckets(1, 1))

    @property
    def device_share(self) -> float:
        """The share of the graph's nodes that the device runs; 1 where nobody recorded it."""
        return 1.0 if self._placed is None else self._placed

    @property
    def cuda_graph_shapes(self) -> int:
        """Shapes that are replayed as CUDA graphs."""
        return self._running.recorded if isinstance(self._running, GpuRunning) else 0

    def run(self, rows: Rows) -> Outputs:
        """Embed rows prepared for the input contract: float32 [len(rows), dimension]."""
        return self._running.run(rows)

    @property
    def run_lone(self) -> Callable[[Rows], Outputs] | None:
        """Embeds rows beside which no other run goes; None where that needs no other session."""
        return self._lone.run if self._lone else None

    def warm(self, max_batch: int, max_tokens: int, budget: Budget | None = None) -> list[Measured]:
        """Choose the plan, and run all sizes that matter, so that no caller meets first-run costs.

        Args:
            max_batch: most rows of one run.
            max_tokens: most tokens of one run, padding included.
            budget: of the time to choose a plan.

        Returns:
            What runs cost, for the batcher's table.

        Raises:
            ManifestError: the embeddings have another dimension than the manifest says, or the
                tokenizer knows ids that the graph does not.
        """
        contract = self.manifest.input
        row = blank_row(contract, self._length(_USUAL))
        if self.tokenizer is not None and isinstance(contract, TextInput):
            self._check_ids(self.tokenizer, contract)
        self._check_run([row])
        if self.device.provider == CPU:
            if self._like is None:
                self._choose(row, budget or Budget())
        else:
            self._prepare_card(self._buckets(max_batch, max_tokens))
        measured = self._check_ends(max_batch, max_tokens)
        measured += measuring.table(
            self.run,
            lambda length: blank_row(contract, length),
            self._usual(max_batch, max_tokens),
            _TABLE_SECONDS if self._like is None else _LIGHT_SECONDS,
        )
        # What opening and measuring freed: a ResNet-18 was 201 MB before and 103 after.
        machine.give_back_memory()
        return measured

    def close(self) -> None:
        """Give the memory back; nothing may run any more."""
        del self._running, self._lone
        machine.give_back_memory()

    def _first_plan(self) -> Plan:
        if self.device.provider == CPU:
            return planning.first(self._asked, self._processors)
        # The card's own queue keeps it busy; of the host one thread feeds it.
        setting = Setting(self._asked.runners or 1, self._asked.threads or 1)
        return Plan(setting, "one run at a time on a card")

    def _buckets(self, max_batch: int, max_tokens: int) -> Buckets:
        return buckets_of(self.manifest.input, max_batch, max_tokens)

    def _open(self, setting: Setting, buckets: Buckets) -> Running:
        contract = self.manifest.input
        if self.device.provider == CPU:
            session = open_session(self.path, self.device, setting, self._library)
            check_graph(session, self.manifest, self.path)
            return CpuRunning(session, contract, self._library)
        options = tensorrt_profile(contract, buckets) if self.device.provider == TENSORRT else {}
        if self.device.provider == TENSORRT and self.manifest.precision == "fp16":
            options["trt_fp16_enable"] = "1"
        card = open_on_card(
            self.path, self.device, setting, self._library, options=options, strict=self._strict
        )
        check_graph(card.session, self.manifest, self.path)
        placed = placement(card.session)
        self._placed = None if placed is None else placed.share(self.device.provider)
        return GpuRunning(
            card,
            contract,
            self.manifest.dimension,
            self.device,
            self._library,
            buckets,
            setting.runners,
        )

    def _prepare_card(self, buckets: Buckets) -> None:
        del self._running  # before the next is opened, or the card holds both
        running = self._running = self._open(self.plan.setting, buckets)
        assert isinstance(running, GpuRunning)
        running.prepare()
        log.info(
            "%s: %d shapes are replayed as CUDA graphs%s",
            self.path.name,
            running.recorded,
            f", since {running.no_graphs}" if running.no_graphs else "",
        )

    def _choose(self, row: Row, budget: Budget) -> None:
        bench = SettingsBench(
            lambda setting: self._open(setting, self._buckets(1, 1)),
            row,
            budget,
            (self.plan.setting, self._running, self._opening),
        )
        self.plan = planning.choose(self._asked, self._processors, bench, self._twice)
        self._running = bench.opened(self.plan.setting)
        if self.plan.lone is not None:
            self._lone = bench.opened(self.plan.lone)

    def _length(self, length: int) -> int:
        contract = self.manifest.input
        return min(length, contract.max_tokens) if isinstance(contract, TextInput) else 1

    def _check_ends(self, max_batch: int, max_tokens: int) -> list[Measured]:
        """Run the smallest and the largest batches of short and of the longest rows.

        Of a twin that is slow here, the largest that run in `_LONGEST_RUN` seconds.
        """
        contract, measured = self.manifest.input, []
        for length in dict.fromkeys([self._length(_SHORT), self._length(_ALL)]):
            row = blank_row(contract, length)
            one = self._check_run([row])
            largest = _most(length, max_batch, max_tokens)
            bearable = max(1, int(_LONGEST_RUN / one.seconds))
            measured += [one, self._check_run([row] * min(largest, bearable))]
        return measured

    def _usual(self, max_batch: int, max_tokens: int) -> list[tuple[int, int]]:
        """List the rows and length of the runs to time, those that matter most first.

        Every other size of each length, then those between.
        """
        shapes = []
        for start in (0, 1):
            for length in dict.fromkeys(map(self._length, _LENGTHS)):
                most = _most(length, max_batch, max_tokens)
                shapes += [(1 << power, length) for power in range(start, most.bit_length(), 2)]
        return shapes

    def _check_run(self, rows: list[Row]) -> Measured:
        began = time.perf_counter()
        try:
            outputs = self.run(rows)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ManifestError(
                f"{self.path} does not run on a batch of {len(rows)}, shape "
                f"{list(rows[0].shape)} each: {str(error)[:300]}; export again"
            ) from error
        if outputs.shape != (len(rows), self.manifest.dimension):
            raise ManifestError(
                f"{self.path} gives embeddings of shape {list(outputs.shape)} for a batch of "
                f"{len(rows)}, its manifest says dimension {self.manifest.dimension}; export again"
            )
        length = len(rows[0]) if self.tokenizer is not None else 1
        return Measured(len(rows), length, time.perf_counter() - began)

    def _check_ids(self, tokenizer: Tokenizer, contract: TextInput) -> None:
        """Look the largest id up in the graph's table, since a text may hold any."""
        largest = max(tokenizer.largest_id, contract.pad_id)
        try:
            self.run([np.full(self._length(_SHORT), largest, np.int64)])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ManifestError(
                f"the tokenizer of {self.path} does not fit its graph, which cannot run on the id "
                f"{largest} that it knows ({str(error)[:200]}); import the model with its own "
                "tokenizer"
            ) from error


def _most(length: int, max_batch: int, max_tokens: int) -> int:
    return max(1, min(max_batch, max_tokens // length))
