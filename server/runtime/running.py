"""Runs a twin on the CPU: rows in, embeddings out, from several threads at a time.

What it looks after is memory. onnxruntime's arena keeps the most that any run ever needed; after
one batch of long texts that is 60 MB of MiniLM that no later run uses. So the arena is made smaller
at the end of a run that was far larger than those before it, and when all runs have been far
smaller for a while than the one that it grew for.
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinserve import manifest as manifests
from twinserve.feed import Rows, feed
from twinserve.manifest import InputContract, TextInput
from twinserve.server.runtime.sessions import Library, Session

Outputs = NDArray[np.float32]

# A run is far larger than others at this multiple of their rows times length.
FAR = 4.0
# How the largest run of late is forgotten, by run: to a quarter in 140 runs.
FORGET = 0.99


class Running(Protocol):
    """An opened twin, on whatever hardware."""

    def run(self, rows: Rows) -> Outputs:
        """Embed rows prepared for the input contract: float32 [len(rows), dimension]."""


class Shrinking:
    """Decides at the end of which runs the arena gives memory back; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent = 0.0  # the largest run of late, in rows times length
        self._held = 0.0  # the largest since memory was given back

    def after(self, cells: int) -> bool:
        """Say whether a run of this size, which begins now, is to end with a smaller arena."""
        with self._lock:
            faded = self._recent * FORGET
            self._recent = max(faded, cells)
            self._held = max(self._held, cells)
            if 0 < FAR * faded < cells or FAR * self._recent < self._held:
                self._held = 0.0
                return True
            return False


class CpuRunning:
    """A session on the CPU.

    Args:
        session: opened, its runs share its threads.
        contract: of the twin's input.
        library: that the session is of.
    """

    def __init__(self, session: Session, contract: InputContract, library: Library) -> None:
        self._session = session
        self._contract = contract
        self._texts = isinstance(contract, TextInput)
        self._shrinking = Shrinking()
        self._shrink = library.run_options({"memory.enable_memory_arena_shrinkage": "cpu:0"})

    def run(self, rows: Rows) -> Outputs:
        """Embed rows; onnxruntime does not hold the interpreter's lock meanwhile."""
        cells = len(rows) * max(map(len, rows)) if self._texts else len(rows)
        options = self._shrink if self._shrinking.after(cells) else None
        inputs = feed(rows, self._contract)
        outputs: Outputs = self._session.run([manifests.OUTPUT], inputs, options)[0]
        return outputs
