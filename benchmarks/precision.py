"""What a precision is worth: a twin's fp32 file against its others, on one thread, in one run.

    .venv/bin/python benchmarks/precision.py --twin twin.onnx twin.int8.onnx --rows drawings.npz

All files are asked in turn, A B A B, with the same rows, so that a machine whose speed drifts slows
all; ratios are taken round by round. Rows are those of an npz (`rows`), or the lines of a text
file. Beside the speed stand the figures of each file's own gate. Prints a row per file and batch
size, and appends every figure as a JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from twinserve import manifest
from twinserve.export.session import GraphSession
from twinserve.feed import Rows
from twinserve.manifest import TextInput
from twinserve.tokens import Tokenizer


def read_rows(path: Path, twin: Path, count: int) -> Rows:
    """Read up to `count` rows as the twin takes them; texts come sorted by length."""
    contract = manifest.read(twin).input
    if not isinstance(contract, TextInput):
        rows: Rows = np.load(path)["rows"][:count]
        return rows
    tokenizer = Tokenizer(manifest.read_tokenizer(twin) or "", contract)
    lines = path.read_text().splitlines()[:count]
    return sorted((tokenizer.encode(line).ids for line in lines), key=len)


def seconds(session: GraphSession, batches: list[Rows]) -> float:
    """Time one pass over all batches."""
    start = time.perf_counter()
    for batch in batches:
        session(batch)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--twin", type=Path, nargs="+", required=True, help="the fp32 file first")
    parser.add_argument("--rows", type=Path, required=True, help="npz of rows, or lines of text")
    parser.add_argument("--count", type=int, default=64, help="rows of one pass")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, help="JSON lines, appended to")
    given = parser.parse_args()
    rows = read_rows(given.rows, given.twin[0], given.count)
    known = [manifest.read(path) for path in given.twin]
    sessions = [
        GraphSession(path.read_bytes(), twin.input, threads=1)
        for path, twin in zip(given.twin, known, strict=True)
    ]
    for size in given.batch:
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        for session in sessions:
            seconds(session, batches)
        rounds = [[seconds(session, batches) for session in sessions] for _ in range(given.rounds)]
        for place, twin in enumerate(known):
            ratios = sorted(times[0] / times[place] for times in rounds)
            figures = {
                figure["figure"]: figure["value"] for figure in twin.parity.get("figures", [])
            }
            found = {
                "twin": twin.name,
                "precision": twin.precision,
                "batch": size,
                "rows_per_second": len(rows) / statistics.median(times[place] for times in rounds),
                "ratio": statistics.median(ratios),
                "ratio_range": [ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]],
                "share_of_multiply_adds": twin.parity.get("made", {}).get("share_of_multiply_adds"),
                "gate": figures,
            }
            low, high = found["ratio_range"]
            print(
                f"{twin.name:16} {twin.precision:5} batch {size:3} "
                f"{found['rows_per_second']:9.1f} rows/s  {found['ratio']:.2f} times fp32 "
                f"({low:.2f} to {high:.2f})  cosine {figures.get('cosine_mean', 1.0):.4f}  "
                f"EER lost {figures.get('equal_error_rate_lost', 0.0):.4f}"
            )
            if given.out is not None:
                with given.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
