r"""Is an imported MiniLM the MiniLM that was imported?

    .venv/bin/python benchmarks/minilm.py --model FOLDER --stsb stsb-en-dev.csv \
        --banking77 train.csv [--server] [--per-intent 40] [--threads 1]

The folder of sentence-transformers is imported, and its embeddings through the file (onnxruntime)
and, with --server, through a running server are held against the encoder run by hand: transformers'
own tokenizer and weights in torch, the mean over real tokens, unit length. Beside the difference
stand two figures that users know: Spearman's rank correlation with people's judgements on STS-b,
and whether the nearest archived question of banking77 has the intent of a new one; the questions
are drawn with a seed, half of each intent's archived and half asked. Prints a table, writes every
figure as JSON, and ends with 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray

from twinserve import manifest as manifests
from twinserve.cli.server_process import ServerProcess
from twinserve.client import Client
from twinserve.distance import Embeddings, Metric, paired, pairwise
from twinserve.export.imports.importer import import_model
from twinserve.export.precision.measures import spearman
from twinserve.export.session import GraphSession, embed_all
from twinserve.manifest import TextInput
from twinserve.tokens import Tokenizer

LARGEST_DIFFERENCE = 1e-5  # of any coordinate
LARGEST_CHANGE = 0.05  # of a figure, in points of a hundred
_BATCH = 64

Embed = Callable[[Sequence[str]], Embeddings]


@dataclass(frozen=True, eq=False)
class Material:
    """What is embedded: pairs with people's judgements, and questions of known intent."""

    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]  # [pairs], 0 to 5
    archived: list[str]
    archived_intents: NDArray[np.str_]
    asked: list[str]
    asked_intents: NDArray[np.str_]

    @property
    def texts(self) -> list[str]:
        """All texts, each once."""
        return list(dict.fromkeys([*self.first, *self.second, *self.archived, *self.asked]))


@dataclass(frozen=True)
class Measured:
    """One way to the embeddings."""

    way: str
    spearman: float  # of a hundred
    nearest: float  # share of questions with the right intent, of a hundred
    largest_difference: float  # of any coordinate from torch's
    largest_drift: float  # in cosine distance from torch's
    seconds: float


def read(stsb: Path, banking77: Path, per_intent: int) -> Material:
    """Read the pairs, and draw the questions."""
    with stsb.open(encoding="utf-8", newline="") as file:
        pairs = list(csv.reader(file))
    with banking77.open(encoding="utf-8", newline="") as file:
        questions = [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
    generator = np.random.default_rng(0)
    archived: list[tuple[str, str]] = []
    asked: list[tuple[str, str]] = []
    for intent in sorted({category for _, category in questions}):
        own = [question for question in questions if question[1] == intent]
        drawn = [own[place] for place in generator.permutation(len(own))[:per_intent]]
        archived += drawn[: len(drawn) // 2]
        asked += drawn[len(drawn) // 2 :]
    return Material(
        first=[pair[0] for pair in pairs],
        second=[pair[1] for pair in pairs],
        scores=np.array([float(pair[2]) for pair in pairs]),
        archived=[text for text, _ in archived],
        archived_intents=np.array([intent for _, intent in archived]),
        asked=[text for text, _ in asked],
        asked_intents=np.array([intent for _, intent in asked]),
    )


def by_hand(folder: Path, max_tokens: int) -> Embed:
    """Run the encoder as its authors do, without any code of twinserve."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def embed(texts: Sequence[str]) -> Embeddings:
        found = np.empty((len(texts), model.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=max_tokens,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).float()
                pooled = (states * mask).sum(1) / mask.sum(1)
                found[places] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return found

    return embed


def through_file(twin: Path, threads: int) -> Embed:
    """Tokenize and run the file, as whoever holds nothing else would."""
    contract = manifests.read(twin).input
    assert isinstance(contract, TextInput)
    tokenizer = Tokenizer(manifests.read_tokenizer(twin) or "", contract)
    session = GraphSession(twin.read_bytes(), contract, threads=threads)
    return lambda texts: embed_all(
        session, [tokenizer.encode(text, truncate=True).ids for text in texts]
    )


def through_server(client: Client) -> Embed:
    """Ask for texts as they come, in calls of many."""

    def embed(texts: Sequence[str]) -> Embeddings:
        calls = [
            client.embed(
                texts[start : start + 256], truncate=True, raise_for_errors=True, timeout=300
            ).vectors
            for start in range(0, len(texts), 256)
        ]
        return np.concatenate(calls)

    return embed


def measure(
    way: str, embed: Embed, material: Material, truth: Embeddings | None
) -> tuple[Measured, Embeddings]:
    """Embed all texts once, and take the figures; also returns the embeddings."""
    texts = material.texts
    start = time.perf_counter()
    vectors = embed(texts)
    seconds = time.perf_counter() - start
    place = {text: index for index, text in enumerate(texts)}

    def of(chosen: Sequence[str]) -> Embeddings:
        return vectors[[place[text] for text in chosen]]

    distances = paired(of(material.first), of(material.second), Metric.COSINE)
    nearest = pairwise(of(material.asked), of(material.archived), Metric.COSINE).argmin(axis=1)
    right = material.archived_intents[nearest] == material.asked_intents
    against = vectors if truth is None else truth
    found = Measured(
        way=way,
        spearman=100 * spearman(-distances, material.scores),
        nearest=100 * float(np.mean(right)),
        largest_difference=float(np.abs(vectors - against).max()),
        largest_drift=float(paired(vectors, against, Metric.COSINE).max()),
        seconds=seconds,
    )
    return found, vectors


def misses(found: Measured, truth: Measured) -> list[str]:
    """Say which aims a way misses."""
    missed = []
    if not found.largest_difference <= LARGEST_DIFFERENCE:
        missed.append(f"{found.way}: differs by {found.largest_difference:.2e}")
    for name in ("spearman", "nearest"):
        change = abs(getattr(found, name) - getattr(truth, name))
        if not change <= LARGEST_CHANGE:
            missed.append(f"{found.way}: {name} changes by {change:.3f} points")
    return missed


def main() -> int:
    """Import, measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="sentence-transformers' folder")
    parser.add_argument("--stsb", type=Path, required=True)
    parser.add_argument("--banking77", type=Path, required=True)
    parser.add_argument("--server", action="store_true", help="also through `twinserve serve`")
    parser.add_argument("--per-intent", type=int, default=40, help="questions drawn of each intent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/minilm.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    material = read(given.stsb, given.banking77, given.per_intent)

    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / "minilm.onnx"
        import_model(given.model, twin, progress=lambda step: print(f"{step} …", file=sys.stderr))
        contract = manifests.read(twin).input
        assert isinstance(contract, TextInput)
        print("torch …", file=sys.stderr)
        embed = by_hand(given.model, contract.max_tokens)
        truth, vectors = measure("torch by hand", embed, material, None)
        print("the file …", file=sys.stderr)
        ways = [measure("file", through_file(twin, given.threads), material, vectors)[0]]
        if given.server:
            print("the server …", file=sys.stderr)
            flags = ["--model", str(twin), "--data-dir", str(Path(folder) / "data")]
            flags += ["--threads", str(given.threads)]
            with (
                ServerProcess(flags, Path(folder) / "log.txt") as server,
                Client(server.target) as client,
            ):
                ways.append(measure("server", through_server(client), material, vectors)[0])
                server.stop()

    missed = [sentence for way in ways for sentence in misses(way, truth)]
    print(f"{len(material.texts)} texts: {len(material.first)} pairs of STS-b; of banking77")
    print(f"{len(material.asked)} questions asked, {len(material.archived)} archived\n")
    print(f"{'':14} {'Spearman':>9} {'1-NN':>8} {'difference':>11} {'drift':>9} {'seconds':>8}")
    for way in (truth, *ways):
        print(
            f"{way.way:14} {way.spearman:9.4f} {way.nearest:8.4f} {way.largest_difference:11.2e} "
            f"{way.largest_drift:9.1e} {way.seconds:8.1f}"
        )
    print("\n" + ("; ".join(missed) or "every aim is met"))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "made_with": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "onnxruntime": onnxruntime.__version__,
            "threads": given.threads,
        },
        "texts": len(material.texts),
        "pairs": len(material.first),
        "asked": len(material.asked),
        "archived": len(material.archived),
        "limits": {"largest_difference": LARGEST_DIFFERENCE, "points": LARGEST_CHANGE},
        "ways": [asdict(way) for way in (truth, *ways)],
        "missed": missed,
    }
    given.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
