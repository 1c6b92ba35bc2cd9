"""Real embeddings for the benchmarks: texts or pictures through a twin of ours, kept as .npy.

    .venv/bin/python -m benchmarks.gallery.embed --model minilm.onnx --out runs/texts.npy \\
        --texts train.csv dev.csv
    .venv/bin/python -m benchmarks.gallery.embed --model drawings.onnx --out runs/drawings.npy \\
        --pictures images_background.zip

Every cell of a CSV file that holds more than two words is a text; every picture in a ZIP file is
one. Each is embedded once. A seeded order, so that `--most` takes the same of them again.
"""  # noqa: D301 - a command over two lines

from __future__ import annotations

import argparse
import csv
import io
import random
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.gallery.served import Served
from twinserve.client import Client

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
WORDS = 3  # of a text at least
BATCH = 32
TIMEOUT = 300.0
SEED = 3

Value = TypeVar("Value")


def texts(paths: Iterable[Path]) -> list[str]:
    """Return the texts of CSV files, each once, in a seeded order."""
    found: dict[str, None] = {}
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                found.update({cell: None for cell in row if len(cell.split()) >= WORDS})
    return _shuffled(list(found))


def pictures(paths: Iterable[Path]) -> list[bytes]:
    """Return the pictures of ZIP files, each once, as their bytes, in a seeded order."""
    found: dict[bytes, None] = {}
    for path in paths:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as file:
            for name in sorted(file.namelist()):
                if name.lower().endswith(PICTURES):
                    found[file.read(name)] = None
    return _shuffled(list(found))


def embedded(twin: Path, inputs: Sequence[str] | Sequence[bytes]) -> np.ndarray:
    """Return the embeddings by a twin: float32 [inputs, dimension].

    Raises:
        TwinserveError: an input could not be embedded.
    """
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        server = Served(twin, Path(folder) / "data")
        try:
            server.start()
            with Client(f"127.0.0.1:{server.port}", timeout=TIMEOUT) as client:
                for answer in client.embed_stream(inputs, encoding="float32", batch=BATCH):
                    for error in answer.errors:
                        if error is not None:
                            raise error
                    parts.append(np.asarray(answer.vectors))
        finally:
            server.close()
    return np.concatenate(parts)


def _shuffled(values: list[Value]) -> list[Value]:
    random.Random(SEED).shuffle(values)
    return values


def main() -> None:
    """Embed what is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a twin's file")
    parser.add_argument("--texts", nargs="+", type=Path, default=[], help="CSV files")
    parser.add_argument("--pictures", nargs="+", type=Path, default=[], help="ZIP files")
    parser.add_argument("--most", type=int, help="of the texts or pictures")
    parser.add_argument("--out", type=Path, required=True, help="its stem names the data")
    given = parser.parse_args()
    inputs = pictures(given.pictures) if given.pictures else texts(given.texts)
    if not inputs:
        parser.error("nothing to embed: name --texts or --pictures")
    found = embedded(given.model, inputs[: given.most])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    np.save(given.out, found)
    print(f"{given.out}: {found.shape[0]:,} x {found.shape[1]}")


if __name__ == "__main__":
    main()
