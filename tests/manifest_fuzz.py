"""Manifests with values out of place, and twin files with damaged bytes, made from a seed.

    python -m tests.manifest_fuzz SEED COUNT

Prints as JSON how many were taken and how many refused. Everything but a ManifestError is a fault,
and so is a manifest that was taken and does not read back as it was written.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests import twins
from twinserve.errors import ManifestError
from twinserve.manifest import Manifest, attach, read, read_graph_digest, read_tokenizer

WATCHED, PATIENCE = 100, 60.0  # so many may take so many seconds
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1 << 70,
    0.5,
    -1e308,
    "",
    "euclidean",
    "../../x",
    "\x00",
    "x" * 5000,
    [],
    {},
    [[[[]]]],
    {"schema": "1.0"},
)


def changed(chance: random.Random, document: Any) -> str:
    """A manifest's JSON with up to three values replaced, lost, or put in twice."""
    made = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(made))
        holder, key = chance.choice(places)
        match chance.randrange(4):
            case 0:
                del holder[key]
            case 1:
                other, name = chance.choice(places)
                holder[key] = copy.deepcopy(other[name] if _there(other, name) else None)
            case 2 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] = chance.choice((holder[key] * -1, holder[key] * 1000, 1e-12, 2))
            case _:
                holder[key] = copy.deepcopy(chance.choice(VALUES))
    text = json.dumps(made)
    if chance.random() < 0.1:
        at = chance.randrange(len(text))
        text = (
            text[:at]
            + chance.choice(("NaN", "[" * 100_000, '"', "}", "\\ud800", "1e999"))
            + text[at:]
        )
    return text


def damaged(chance: random.Random, whole: bytes) -> bytes:
    """A twin file with bytes changed, lost or put in, mostly near its ends, where headers are."""
    data = bytearray(whole)
    for _ in range(chance.choice((1, 2, 4))):
        at = chance.randrange(len(data)) if chance.random() < 0.3 else chance.randrange(64)
        at = len(data) - 1 - at if chance.random() < 0.5 else at
        match chance.randrange(4):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + chance.randrange(1, 200)]
            case 2:
                data[at:at] = chance.randbytes(chance.randrange(1, 12))
            case _:
                data[at : at + 4] = b"\xff\xff\xff\x7f"
        if len(data) < 65:
            break
    return bytes(data)


def _places(value: Any) -> Any:
    """Every (container, key) of a document."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _there(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    chance = random.Random(arguments.seed)
    wholes = [twins.small_image_twin(), twins.small_text_twin(calibrated=False)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "twin.onnx"
        documents, graphs = [], []
        for whole in wholes:
            path.write_bytes(whole)
            manifest = read(path)
            documents.append(json.loads(manifest.to_json()))
            graphs.append(attach(whole, manifest))
        for number in range(arguments.count):
            if number % WATCHED == 0:  # each time costs a thread
                faulthandler.dump_traceback_later(PATIENCE, exit=True)
            try:
                if chance.random() < 0.5:
                    taken = Manifest.from_json(changed(chance, chance.choice(documents)))
                else:
                    path.write_bytes(damaged(chance, chance.choice(graphs)))
                    taken = read(path)
                    read_tokenizer(path)
                    read_graph_digest(path)
                assert Manifest.from_json(taken.to_json()) == taken
            except ManifestError as error:
                outcomes["refused" if len(str(error)) < 2000 else "refused at length"] += 1
            except BaseException:
                print(f"manifest {number} of seed {arguments.seed}", file=sys.stderr)
                raise
            else:
                outcomes["taken"] += 1
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
