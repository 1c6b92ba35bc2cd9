"""What runs at a time, threads and spinning are worth on this machine, for twins of your own.

    .venv/bin/python benchmarks/runners.py twin.onnx [--seconds 60]

All settings of one twin are open at once and are asked in turns, A B C A B C, so that whatever else
the machine does slows all alike; ratios are medians over the turns against one run at a time
without spinning. CPU time is the process's, a caller's own work included. Prints one JSON line per
setting and load, then what a server would choose.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from twinserve.manifest import TextInput
from twinserve.server.config import CPU_BATCH_TOKENS
from twinserve.server.runtime import machine, measuring
from twinserve.server.runtime.buckets import blank_row
from twinserve.server.runtime.graph_check import checked_manifest
from twinserve.server.runtime.planning import Asked, Setting, Spinning, candidates
from twinserve.server.runtime.providers import CPU, Device
from twinserve.server.runtime.runner import Runner
from twinserve.server.runtime.running import CpuRunning
from twinserve.server.runtime.sessions import Onnxruntime, open_session

LOADS = (1, 8, 32)  # rows in flight; a single row goes to a single run
TURN = 0.2  # seconds of one setting at one load
TOKENS = 32
TRICKLE = 50  # single rows, 20 ms apart, for what a setting burns between them


def settings(processors: int) -> list[Setting]:
    """The candidates without spinning, and the first of them with it."""
    found = list(candidates(Asked(), processors))
    spun = [Setting(1, processors, how) for how in (Spinning.SHORT, Spinning.ON)]
    return found + (spun if processors > 1 else [])


def main() -> None:
    """Time every setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("twin", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="for the table (60)")
    arguments = parser.parse_args()
    contract = checked_manifest(arguments.twin).input
    texts = isinstance(contract, TextInput)
    row = blank_row(contract, min(TOKENS, contract.max_tokens) if texts else 1)
    library, device = Onnxruntime(), Device(CPU, {})
    tried = settings(machine.processors().usable)
    opened = {
        one: CpuRunning(open_session(arguments.twin, device, one, library), contract, library)
        for one in tried
    }
    for running in opened.values():
        running.run([row] * 32)

    rates: dict[tuple[Setting, int], list[tuple[float, float]]] = {}
    until = time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        for load in LOADS:
            for one, running in opened.items():
                runners = min(one.runners, load)
                rows = [row] * (load // runners)
                counted = 0

                def run(running: CpuRunning = running, rows: list = rows) -> None:
                    nonlocal counted
                    running.run(rows)
                    counted += len(rows)

                began = time.process_time()
                rate = measuring.rate(run, len(rows), runners, TURN)
                cpu = (time.process_time() - began) / counted
                rates.setdefault((one, load), []).append((rate, cpu))
                time.sleep(0.02)  # so that what spins after its turn burns none of the next
    for load in LOADS:
        base = rates[tried[0], load]
        for one in tried:
            pairs = list(zip(rates[one, load], base, strict=True))
            print(
                json.dumps(
                    {
                        "twin": arguments.twin.stem,
                        "in_flight": load,
                        "setting": str(one),
                        "rows_per_second": round(statistics.median(r for r, _ in rates[one, load])),
                        "ratio": round(statistics.median(r / b for (r, _), (b, _) in pairs), 3),
                        "cpu_ratio": round(statistics.median(c / b for (_, c), (_, b) in pairs), 3),
                        "turns": len(pairs),
                    }
                ),
                flush=True,
            )
    for one, running in opened.items():
        began = time.process_time()
        for _ in range(TRICKLE):
            running.run([row])
            time.sleep(0.02)
        took = (time.process_time() - began) / TRICKLE
        print(json.dumps({"setting": str(one), "trickle_cpu_ms_per_row": round(1000 * took, 2)}))
    del opened
    began = time.monotonic()
    runner = Runner(arguments.twin, device)
    ready = time.monotonic()
    runner.warm(64, CPU_BATCH_TOKENS)
    print(
        json.dumps(
            {
                "chosen": str(runner.plan),
                "opened_seconds": round(ready - began, 2),
                "warmed_seconds": round(time.monotonic() - ready, 2),
                "resident_mb": machine.resident() >> 20,
            }
        )
    )


if __name__ == "__main__":
    main()
