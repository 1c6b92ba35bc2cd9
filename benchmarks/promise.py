r"""Does the promise hold? Stated bounds against what classes do that nobody has seen.

    .venv/bin/python benchmarks/promise.py --omniglot images_background.zip --orl orl_faces.zip \
        --banking77 train.csv --minilm FOLDER [--seeds 5] [--write docs/promise.md]

Each seed splits the classes anew into train, calibrate and unseen. Verification: a twin is trained
and exported (for banking77 a ready model is imported and calibrated), and the rate of false accepts
among the unseen classes is held against the bound that the file states for each FAR it carries.
Search: galleries of unseen classes on a running server, asked by strangers from the other unseen
classes, their rate of matches against the bound that the replies state. Every figure is counted
here anew, from embeddings alone. Prints the tables, and writes every cell as JSON lines.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from twinserve import manifest as manifests
from twinserve.cli import __main__ as command_line
from twinserve.cli.server_process import ServerProcess
from twinserve.client import Client
from twinserve.export.session import GraphSession, embed_all
from twinserve.feed import Rows
from twinserve.manifest import Manifest, TextInput
from twinserve.tokens import Tokenizer
from twinserve.train import checkpoint
from twinserve.train.config import load_config
from twinserve.train.loop import train
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import gallery_service_pb2_grpc as rpc
from twinserve.v1 import shared_pb2

FARS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
FPIRS = (0.3, 0.1, 0.05, 0.02, 0.01)
SIZES = (100, 1000, 5000)  # items of a gallery
STRANGERS = 2000  # probes of nobody, at most
ITEMS = 8000  # of the unseen classes whose pairs are counted, at most

MARKER = "<!-- tables: benchmarks/promise.py writes all below -->"

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Unseen:
    """Classes that neither trained nor calibrated, embedded by the twin in `file`."""

    task: str
    seed: int
    file: Path
    manifest: Manifest
    vectors: Vectors  # [n, dimension]
    labels: Labels  # [n]


@dataclass(frozen=True)
class Cell:
    """One promise: what was asked for, what was stated, and what happened."""

    task: str
    seed: int
    kind: str  # FAR or FPIR
    items: int  # of the gallery; 0 for verification
    rate: float  # asked for
    measured: float | None  # by the calibration or the gallery; None without evidence
    stated: float | None  # the upper 95 % bound
    realised: float | None  # among unseen classes
    found: float | None  # share of genuine pairs, or of known probes, that match

    @property
    def kept(self) -> bool | None:
        """Whether the promise held; None where none was made."""
        if self.stated is None or self.realised is None:
            return None
        return self.realised <= self.stated


def main() -> int:
    """Measure all tasks that data was given for."""
    arguments = parsed()
    cells: list[Cell] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tasks: list[tuple[str, Callable[[int, Path], Unseen]]] = []
        if arguments.omniglot:
            tasks.append(("Omniglot", lambda seed, out: omniglot(arguments, seed, out)))
        if arguments.orl:
            tasks.append(("ORL faces", lambda seed, out: orl(arguments, seed, out)))
        if arguments.banking77 and arguments.minilm:
            tasks.append(("banking77", lambda seed, out: banking77(arguments, seed, out)))
        for name, make in tasks:
            for seed in range(arguments.omniglot_seeds if name == "Omniglot" else arguments.seeds):
                out = Path(folder) / f"{name.replace(' ', '')}{seed}"
                out.mkdir()
                unseen = make(seed, out)
                found = [*verification(unseen), *searches(unseen, out)]
                cells += found
                made = [cell.kept for cell in found if cell.kept is not None]
                print(
                    f"{name}, seed {seed}: {sum(made)} of {len(made)} promises kept "
                    f"({time.monotonic() - started:.0f} s so far)",
                    file=sys.stderr,
                )
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    with arguments.json.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(cell) | {"kept": cell.kept}) + "\n" for cell in cells)
    text = tables(cells)
    print(text)
    if arguments.write:
        before, marker, _ = arguments.write.read_text(encoding="utf-8").partition(MARKER)
        if not marker:
            raise SystemExit(f"{arguments.write} lacks the line {MARKER}; the tables go below it")
        arguments.write.write_text(f"{before}{MARKER}\n\n{text}\n", encoding="utf-8")
    return 0


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--omniglot", type=Path, help="images_background.zip")
    parser.add_argument("--orl", type=Path, help="zip of people's folders")
    parser.add_argument("--banking77", type=Path, help="train.csv: text, category")
    parser.add_argument("--minilm", type=Path, help="sentence-transformers folder, for banking77")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--omniglot-seeds", type=int, default=3, help="its trainings take longest")
    parser.add_argument("--seconds", type=float, default=75.0, help="of each Omniglot training")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/promise.jsonl"))
    parser.add_argument("--write", type=Path, help="Markdown file with a line for the tables")
    return parser.parse_args()


# -- tasks ----------------------------------------------------------------------------------------


def omniglot(arguments: argparse.Namespace, seed: int, out: Path) -> Unseen:
    """Characters of 30 alphabets: 40 % train, 15 % calibrate, 45 % unseen."""
    settings = [
        "train_groups=",
        "calibrate_groups=",
        "report_groups=",
        "calibrate_fraction=0.15",
        "report_fraction=0.45",
        "max_steps=300",
        f"max_seconds={arguments.seconds}",
        "evaluate_every=150",
        "one_shot_trials=200",
    ]
    return trained("Omniglot", arguments.omniglot, "omniglot", settings, seed, out)


def orl(arguments: argparse.Namespace, seed: int, out: Path) -> Unseen:
    """30 people: 8 train, 12 calibrate, 10 are unseen; too few to fill galleries."""
    settings = [
        "image_size=32",
        "calibrate_fraction=0.4",
        "report_fraction=0.334",
        "classes_per_batch=8",
        "rotate_degrees=8",
        "scale=0.1",
        "shift=0.08",
        "max_steps=150",
        "max_seconds=40",
        "evaluate_every=50",
        "one_shot_ways=8",
    ]
    return trained("ORL faces", arguments.orl, None, settings, seed, out)


def trained(
    task: str, data: Path, preset: str | None, settings: Sequence[str], seed: int, out: Path
) -> Unseen:
    """Train and export; the run's report classes are the unseen ones."""
    run_dir, file = out / "run", out / "twin.onnx"
    config = load_config(preset, [*settings, f"seed={seed}", f"data={data}", f"out={run_dir}"])
    train(config, progress=False)
    command("export", run_dir, "--out", file)
    unseen = checkpoint.load(run_dir).part("report")
    vectors = vectors_of(file, unseen.rows)
    return Unseen(task, seed, file, manifests.read(file), vectors, unseen.labels)


def banking77(arguments: argparse.Namespace, seed: int, out: Path) -> Unseen:
    """77 intents, a ready model: 22 intents calibrate, 55 are unseen."""
    source = out.parent / "minilm.onnx"
    with arguments.banking77.open(encoding="utf-8", newline="") as table:
        rows = [row for row in csv.reader(table) if row[1] != "category"]
    names = sorted({row[1] for row in rows})
    labels = np.array([names.index(row[1]) for row in rows], dtype=np.int64)
    if not source.exists():  # the same for every seed, as are the vectors
        command("import", arguments.minilm, "--out", source)
        contract = manifests.read(source).input
        assert isinstance(contract, TextInput)
        tokenizer = Tokenizer(manifests.read_tokenizer(source) or "", contract)
        ids = [tokenizer.encode(row[0]).ids for row in rows]
        np.save(source.with_suffix(".npy"), vectors_of(source, ids))
    vectors: Vectors = np.load(source.with_suffix(".npy"))
    chosen = np.random.default_rng(seed).permutation(len(names))[:22]
    calibrating = np.isin(labels, chosen)
    labelled, file = out / "calibrate.csv", out / "minilm.onnx"
    with labelled.open("w", encoding="utf-8", newline="") as target:
        own = (row for row, yes in zip(rows, calibrating.tolist(), strict=True) if yes)
        csv.writer(target).writerows([("text", "label"), *own])
    command("calibrate", source, "--data", labelled, "--out", file)
    return Unseen(
        "banking77", seed, file, manifests.read(file), vectors[~calibrating], labels[~calibrating]
    )


def command(*arguments: str | Path) -> None:
    """Run one verb of the command line, in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = command_line.main([*map(str, arguments), "--json"])
    if code:
        raise SystemExit(f"twinserve {arguments[0]} ended with {code}")


def vectors_of(file: Path, rows: Rows) -> Vectors:
    """Embed rows with the graph in the file, as serving will."""
    session = GraphSession(file.read_bytes(), manifests.read(file).input)
    return embed_all(session, rows)


# -- verification ---------------------------------------------------------------------------------


def verification(unseen: Unseen) -> list[Cell]:
    """Hold the file's operating points against the pairs of the unseen classes."""
    calibration = unseen.manifest.calibration(unseen.manifest.dimension)
    assert calibration is not None
    generator = np.random.default_rng(unseen.seed)
    drawn = generator.permutation(len(unseen.labels))[:ITEMS]
    genuine, impostor = distances(unseen.vectors[drawn], unseen.labels[drawn])
    cells = []
    for rate in FARS:
        # As the server picks it: the point of the largest rate at most this, if it lies near.
        below = [p for p in calibration.points if p.false_accept_rate <= rate * (1 + 1e-9)]
        point = max(below, key=lambda p: p.false_accept_rate, default=None)
        if point is None:
            cells.append(Cell(unseen.task, unseen.seed, "FAR", 0, rate, None, None, None, None))
            continue
        cells.append(
            Cell(
                unseen.task,
                unseen.seed,
                "FAR",
                0,
                rate,
                point.false_accept_rate,
                point.false_accept_rate_upper,
                float(np.searchsorted(impostor, point.threshold, side="right") / len(impostor)),
                float(np.searchsorted(genuine, point.threshold, side="right") / len(genuine)),
            )
        )
    return cells


def distances(vectors: Vectors, labels: Labels) -> tuple[NDArray[np.float64], ...]:
    """Cosine distances of all pairs: (genuine, impostor), each sorted."""
    units = vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    genuine, impostor = [], []
    for start in range(0, len(units), 500):
        block = 1.0 - units[start : start + 500] @ units.T
        later = np.arange(len(units)) > np.arange(start, start + len(block))[:, None]
        same = labels[start : start + len(block), None] == labels
        genuine.append(block[later & same])
        impostor.append(block[later & ~same].astype(np.float32))
    return (
        np.sort(np.concatenate(genuine)),
        np.sort(np.concatenate(impostor).astype(np.float64)),
    )


# -- search ---------------------------------------------------------------------------------------


def searches(unseen: Unseen, out: Path) -> list[Cell]:
    """Fill galleries on a running server with some unseen classes, and probe with the others."""
    flags = ["--model", str(unseen.file), "--data-dir", str(out / "data")]
    cells: list[Cell] = []
    with (
        ServerProcess(flags, out / "server.log") as server,
        Client(server.target) as client,
        grpc.insecure_channel(server.target, [("grpc.max_receive_message_length", -1)]) as channel,
    ):
        stub = rpc.GalleryServiceStub(channel)
        for size in SIZES:
            parts = gallery_and_strangers(unseen, size)
            if parts is not None:
                cells += search(unseen, client, stub, size, *parts)
    return cells


def gallery_and_strangers(
    unseen: Unseen, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """Choose (enrolled, strangers, known probes) of the unseen classes by index.

    70 % of the classes are enrolled, or 85 % where those do not fill the gallery, each with as many
    items as the size asks for and one left over: that one is the known probe.
    """
    generator = np.random.default_rng(1000 * unseen.seed + size)
    classes = generator.permutation(np.unique(unseen.labels))
    members = [
        generator.permutation(np.flatnonzero(unseen.labels == label)) for label in classes.tolist()
    ]
    for share in (0.7, 0.85):
        count = int(share * len(classes))
        # Few subjects tell little, so small galleries hold one or two items of each.
        each = max(1, -(-size // count))
        room = size
        enrolled: list[NDArray[np.int64]] = []
        known: list[NDArray[np.int64]] = []
        for own in members[:count]:
            taken = min(each, len(own) - 1, room)
            if taken > 0:
                enrolled.append(own[:taken])
                known.append(own[-1:])
                room -= taken
        if room <= 0.1 * size:
            strangers = np.flatnonzero(~np.isin(unseen.labels, classes[:count]))
            return (
                np.concatenate(enrolled),
                generator.permutation(strangers)[:STRANGERS],
                np.concatenate(known),
            )
    return None


def search(
    unseen: Unseen,
    client: Client,
    stub: rpc.GalleryServiceStub,
    size: int,
    enrolled: NDArray[np.int64],
    strangers: NDArray[np.int64],
    known: NDArray[np.int64],
) -> list[Cell]:
    """Enrol, ask at each rate, and count."""
    name = f"g{size}"
    client.create_gallery(name)

    def input_of(row: int) -> shared_pb2.Input:
        values = unseen.vectors[row].tolist()
        return shared_pb2.Input(
            embedding=shared_pb2.Embedding(values=values, space_id=unseen.manifest.space_id)
        )

    token = ""
    for part in batches(enrolled.tolist(), 500):
        items = [
            pb.EnrollItem(
                item=shared_pb2.Item(id=f"i{row}", subject=f"s{unseen.labels[row]}"),
                input=input_of(row),
            )
            for row in part
        ]
        token = stub.Enroll(pb.EnrollRequest(gallery=name, items=items)).consistency_token

    def ask(rows: Iterable[int], rate: float) -> list[pb.Hits]:
        answers: list[pb.Hits] = []
        for part in batches(list(rows), 500):
            request = pb.SearchRequest(
                gallery=name,
                probes=[input_of(row) for row in part],
                top_k=1,
                at_least=token,
                rule=shared_pb2.DecisionRule(false_positive_identification_rate=rate),
            )
            answers += [result.hits for result in stub.Search(request).results]
        return answers

    settle(lambda: ask(known[:1].tolist(), max(FPIRS))[0])
    cells = []
    for rate in FPIRS:
        answers = ask(strangers.tolist(), rate)
        first = answers[0]
        if not first.HasField("false_positive_identification_rate_upper"):
            cells.append(Cell(unseen.task, unseen.seed, "FPIR", size, rate, None, None, None, None))
            continue
        matched = [answer.outcome == shared_pb2.OUTCOME_MATCH for answer in answers]
        own = [
            answer.outcome == shared_pb2.OUTCOME_MATCH
            and answer.hits[0].item.subject == f"s{unseen.labels[row]}"
            for row, answer in zip(known.tolist(), ask(known.tolist(), rate), strict=True)
        ]
        cells.append(
            Cell(
                unseen.task,
                unseen.seed,
                "FPIR",
                size,
                rate,
                first.false_positive_identification_rate,
                first.false_positive_identification_rate_upper,
                float(np.mean(matched)),
                float(np.mean(own)),
            )
        )
    return cells


def settle(ask: Callable[[], pb.Hits], seconds: float = 30.0, quiet: float = 3.0) -> None:
    """Wait until the background has measured the gallery as it is now.

    Until then answers stand on an earlier, smaller state of it, scaled up: right, but wide.
    """
    until = time.monotonic() + seconds
    stated, since = ask(), time.monotonic()
    while time.monotonic() < min(until, since + quiet):
        time.sleep(0.25)
        now = ask()
        if now != stated:
            stated, since = now, time.monotonic()


def batches(rows: list[int], size: int) -> Iterable[list[int]]:
    """Cut into runs of at most `size`."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


# -- tables ---------------------------------------------------------------------------------------


def tables(cells: Sequence[Cell]) -> str:
    """Write the two tables and their sums as Markdown."""
    lines: list[str] = []
    for kind, what in (("FAR", "Verification"), ("FPIR", "Search")):
        own = [cell for cell in cells if cell.kind == kind]
        made = [cell for cell in own if cell.kept is not None]
        kept = sum(bool(cell.kept) for cell in made)
        share = f"{kept / len(made):.0%}" if made else "none"
        lines += [
            f"### {what}: {kept} of {len(made)} promises kept ({share})",
            "",
            f"| task | gallery | {kind} asked | cells with evidence | kept "
            "| stated bound, median | realised, median (range) | found, median |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        groups = sorted({(c.task, c.items, -c.rate) for c in own})
        for task, items, minus_rate in groups:
            group = [c for c in own if (c.task, c.items, c.rate) == (task, items, -minus_rate)]
            lines.append(row(task, items, -minus_rate, group))
        lines.append("")
    return "\n".join(lines).rstrip()


def row(task: str, items: int, rate: float, group: Sequence[Cell]) -> str:
    """Write one line: all seeds of a task, size and rate."""
    told = [cell for cell in group if cell.kept is not None]
    head = f"| {task} | {items or '–'} | {rate:g} | {len(told)} of {len(group)} |"
    if not told:
        return f"{head} – | – | – | – |"
    realised = [cell.realised for cell in told if cell.realised is not None]
    stated = statistics.median(cell.stated for cell in told if cell.stated is not None)
    found = statistics.median(cell.found for cell in told if cell.found is not None)
    return (
        f"{head} {sum(bool(cell.kept) for cell in told)} | {stated:.2g} | "
        f"{statistics.median(realised):.2g} ({min(realised):.2g} to {max(realised):.2g}) | "
        f"{found:.1%} |"
    )


if __name__ == "__main__":
    sys.exit(main())
