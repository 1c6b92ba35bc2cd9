r"""How near our training comes to a bare loop, and how it stands beside sentence-transformers'.

    .venv/bin/python -m benchmarks.training_peers runs/training-peers
    runs/training-peers/sentence-transformers/bin/python -m benchmarks.training_speed \
        --model all-MiniLM-L6-v2/ --pairs stsb.csv

Three ways of taking the same steps, in turns: `twinserve.train.loop.train` as a user calls it; the
shortest loop in torch that takes the same batches through the same twin; and, on the same pairs in
the same order, SentenceTransformerTrainer with CosineSimilarityLoss, the same AdamW, rates and
clipping. Every turn begins afresh with the same seed. The clock runs from the end of the first step
to the end of the last, so that reading data and evaluating is in none of them; wall and processor
time are both taken, since other programs may share the machine. The table shows medians, and
ratios taken turn by turn.

A last turn is without dropout, so that no draw differs: there the losses of each step are held
against each other. Needs no network. Run in the project's own environment it leaves the peer out.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.optim.optimizer import register_optimizer_step_post_hook

from twinserve.train import losses
from twinserve.train.augment import Augmented
from twinserve.train.build import begin, build, put_channels_last
from twinserve.train.config import TrainConfig, load_config
from twinserve.train.faults import Faults
from twinserve.train.loop import train
from twinserve.train.optimizer import optimizer_of, schedule_of
from twinserve.train.record import Keeper
from twinserve.train.task import Task, read, task_of
from twinserve.train.twins import Twin

LEAST_OF_BARE = 0.9
LEAST_OF_PEER = 0.97
LARGEST_DIFFERENCE = 1e-3  # of a step's loss from the peer's, as a share of it
PEER = "sentence-transformers"


@dataclasses.dataclass
class Turn:
    """Some steps of one way: when each ended, and what each cost."""

    ended: list[float] = dataclasses.field(default_factory=list)  # seconds
    processor: list[float] = dataclasses.field(default_factory=list)  # seconds, of this process
    losses: list[float] = dataclasses.field(default_factory=list)

    @property
    def wall_a_step(self) -> float:
        """Seconds, without the first step."""
        return (self.ended[-1] - self.ended[0]) / (len(self.ended) - 1)

    @property
    def processor_a_step(self) -> float:
        """Seconds of the processor, without the first step."""
        return (self.processor[-1] - self.processor[0]) / (len(self.processor) - 1)


Way = Callable[[TrainConfig, Turn], None]


@contextmanager
def clock(turn: Turn) -> Iterator[None]:
    """Note the end of every step of any optimizer."""

    def note(*_: object) -> None:
        turn.ended.append(time.perf_counter())
        turn.processor.append(time.process_time())

    handle = register_optimizer_step_post_hook(note)
    try:
        yield
    finally:
        handle.remove()


def ours(config: TrainConfig, turn: Turn) -> None:
    """Train as a user does, into a folder that is thrown away."""
    noted = Keeper.note

    def note(keeper: Keeper, figures: Any, items: int) -> None:
        turn.losses.append(figures.loss)
        noted(keeper, figures, items)

    Keeper.note = note
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(dataclasses.replace(config, out=folder), progress=False)
    finally:
        Keeper.note = noted


def bare(config: TrainConfig, turn: Turn) -> None:
    """Take the same steps as one would by hand: no figures, no clipping, nothing checked."""
    task, twin = _begun(config)
    augmented = Augmented(task.training.rows, twin.contract, config)
    generator = torch.Generator()
    no_objective = torch.nn.Identity()
    optimizer = optimizer_of(twin, no_objective, config)
    schedule = schedule_of(optimizer, config)
    for step in range(config.max_steps):
        batch = task.batches[step]
        generator.manual_seed(config.seed * 1_000_003 + step)
        embeddings = twin(*augmented(batch, generator))
        loss = _loss(config, batch, embeddings)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def _begun(config: TrainConfig) -> tuple[Task, Twin]:
    material = read(config, Faults())
    task = task_of(material, config)
    torch.manual_seed(config.seed)
    twin = build(config, material.contract, material.tokenizer)
    begin(twin, config, task.training)
    put_channels_last(twin)
    return task, twin.train()


def _loss(config: TrainConfig, batch: Any, embeddings: torch.Tensor) -> torch.Tensor:
    if config.loss == "supervised_contrastive":
        labels = torch.from_numpy(batch.labels)
        return losses.supervised_contrastive(embeddings, labels, config.temperature)
    first, second = embeddings.chunk(2)  # of unit length
    targets = torch.from_numpy(batch.targets)
    return ((first * second).sum(dim=1) - targets).square().mean()


def peer(config: TrainConfig, turn: Turn) -> None:
    """Give sentence-transformers' trainer the same pairs, in the same order, and its own collator,
    loop and loss.
    """
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
    from torch.utils.data import BatchSampler, SequentialSampler

    class InOrder(SentenceTransformerTrainer):
        def get_batch_sampler(self, dataset: Any, batch_size: int, **_: Any) -> BatchSampler:
            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last=True)

    class Noted(CosineSimilarityLoss):
        def forward(self, *inputs: Any, **named: Any) -> torch.Tensor:
            loss: torch.Tensor = super().forward(*inputs, **named)
            turn.losses.append(loss.item())
            return loss

    task = task_of(read(config, Faults()), config)
    columns: dict[str, list[Any]] = {"sentence1": [], "sentence2": [], "score": []}
    for step in range(config.max_steps):
        batch: Any = task.batches[step]
        names = [[task.training.names[item] for item in side] for side in batch.members.T.tolist()]
        columns["sentence1"] += names[0]
        columns["sentence2"] += names[1]
        columns["score"] += batch.targets.tolist()
    torch.manual_seed(config.seed)
    model = SentenceTransformer(config.weights, device="cpu", local_files_only=True)
    optimizer = torch.optim.AdamW(_groups(model, config), lr=config.learning_rate, fused=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                max_steps=config.max_steps,
                per_device_train_batch_size=config.pairs_per_batch,
                max_grad_norm=config.gradient_clip,
                dataloader_num_workers=0,
                use_cpu=True,
                seed=config.seed,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(columns),
            loss=Noted(model),
            optimizers=(optimizer, schedule_of(optimizer, config)),
        )
        trainer.train()


def _groups(model: torch.nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Let biases and norms be, as our optimizer and the trainer's own do."""
    weights = [one for one in model.parameters() if one.requires_grad]
    return [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
    ]


def drawings(path: Path, classes: int = 120, items: int = 20) -> Path:
    """Write a zip of made characters in Omniglot's size: broken lines, shaken for each item."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for label in range(classes):
            strokes = generator.uniform(15, 90, size=(3, 4, 2))
            for item in range(items):
                picture = Image.new("1", (105, 105), 1)
                draw = ImageDraw.Draw(picture)
                for stroke in strokes + generator.normal(scale=2.0, size=(3, 4, 2)):
                    draw.line([tuple(point) for point in stroke.tolist()], fill=0, width=3)
                buffer = io.BytesIO()
                picture.save(buffer, "PNG")
                archive.writestr(f"made/character{label:03}/{item:02}.png", buffer.getvalue())
    return path


def without_dropout(model: Path, folder: Path) -> Path:
    """Copy a model's folder with a config that drops nothing."""
    shutil.copytree(model, folder, symlinks=False)
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in settings:
        if key.endswith(("dropout", "dropout_prob")) and settings[key] is not None:
            settings[key] = 0.0
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def measure(name: str, ways: dict[str, Way], config: TrainConfig, rounds: int) -> dict[str, Any]:
    """Let the ways take turns, every other round in the opposite order."""
    turns: dict[str, list[Turn]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            print(f"{name}, round {number + 1} of {rounds}: {way} …", file=sys.stderr)
            turns[way].append(taken(ways[way], config))
    first = turns["ours"]
    return {
        "subject": name,
        "steps": config.max_steps,
        "ways": {
            way: {
                "wall_seconds_a_step": [one.wall_a_step for one in done],
                "processor_seconds_a_step": [one.processor_a_step for one in done],
                "ours_of_it_by_wall": ratios(first, done, "wall_a_step"),
                "ours_of_it_by_processor": ratios(first, done, "processor_a_step"),
            }
            for way, done in turns.items()
        },
    }


def taken(way: Way, config: TrainConfig) -> Turn:
    """Take one turn."""
    turn = Turn()
    with clock(turn):
        way(config, turn)
    assert len(turn.ended) == config.max_steps
    return turn


def ratios(own: Sequence[Turn], other: Sequence[Turn], what: str) -> dict[str, float]:
    """Return our steps a second as a share of another way's: median, lowest and highest turn."""
    found = [getattr(b, what) / getattr(a, what) for a, b in zip(own, other, strict=True)]
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def curves(config: TrainConfig) -> dict[str, Any]:
    """Hold the losses of each step against the peer's, nothing dropped."""
    with tempfile.TemporaryDirectory() as folder:
        plain = without_dropout(Path(config.weights), Path(folder) / "model")
        config = dataclasses.replace(config, weights=str(plain))
        print("the curve of ours …", file=sys.stderr)
        own = taken(ours, config).losses
        print("the curve of the peer …", file=sys.stderr)
        other = taken(peer, config).losses
    apart = [abs(a - b) / b for a, b in zip(own, other, strict=True)]
    return {
        "steps": config.max_steps,
        "ours": own,
        "peer": other,
        "largest_difference": max(apart),
        "median_difference": statistics.median(apart),
    }


def shown(measured: Sequence[dict[str, Any]]) -> str:
    """Lay the figures out as a Markdown table."""
    lines = [
        "| steps of | way | wall, s a step | processor, s a step | ours in steps a second: by wall "
        "| by processor |",
        "|---|---|---|---|---|---|",
    ]
    for one in measured:
        for way, found in one["ways"].items():
            cells = [one["subject"], way]
            cells += [
                f"{statistics.median(found[key]):.3f}"
                for key in ("wall_seconds_a_step", "processor_seconds_a_step")
            ]
            for key in ("ours_of_it_by_wall", "ours_of_it_by_processor"):
                ratio = found[key]
                cells.append(
                    "–"
                    if way == "ours"
                    else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
                )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def misses(measured: Sequence[dict[str, Any]], curve: dict[str, Any] | None) -> list[str]:
    """Say which aims are missed, by processor time, which other programs disturb less."""
    found = []
    for one in measured:
        for way, least in (("bare loop", LEAST_OF_BARE), (PEER, LEAST_OF_PEER)):
            if way in one["ways"]:
                ratio = one["ways"][way]["ours_of_it_by_processor"]["median"]
                if ratio < least:
                    found.append(f"{one['subject']}: {ratio:.2f} of {way}, aim {least}")
    if curve is not None and curve["largest_difference"] > LARGEST_DIFFERENCE:
        found.append(f"losses are up to {curve['largest_difference']:.1e} of the peer's apart")
    return found


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="sentence-transformers' folder; none: no texts")
    parser.add_argument("--pairs", type=Path, help="CSV: sentence1, sentence2, score 0 to 5, split")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of MiniLM, a turn (%(default)s)")
    parser.add_argument("--drawing-steps", type=int, default=30, help="of conv4, a turn")
    parser.add_argument("--curve-steps", type=int, default=40, help="without dropout; 0: no curve")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_speed.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    has_peer = importlib.util.find_spec("sentence_transformers") is not None

    measured, curve = [], None
    ways: dict[str, Way] = {"ours": ours, "bare loop": bare}
    with tempfile.TemporaryDirectory() as folder:
        asked = {
            "data": str(drawings(Path(folder) / "made.zip")),
            "ink_inverted": "true",
            "rotate_degrees": "10",
            "scale": "0.2",
            "shear": "0.2",
            "shift": "0.08",
            "max_steps": str(given.drawing_steps),
            "evaluate_every": str(given.drawing_steps),
        }
        config = load_config(None, [f"{key}={value}" for key, value in asked.items()])
        measured.append(measure("conv4, 128 drawings", ways, config, given.rounds))
    if given.model is not None and given.pairs is not None:
        if has_peer:
            ways = {**ways, PEER: peer}
        config = TrainConfig(
            data=str(given.pairs),
            twin="text_encoder",
            weights=str(given.model),
            score_range="0..5",
            split_column="split",
            allow_shared_items=True,
            calibrate_fraction=0.01,
            loss="cosine_mse",
            different_cosine=0.0,
            pairs_per_batch=32,
            learning_rate=5e-5,
            weight_decay=0.01,
            gradient_clip=1.0,
            warmup_steps=4,
            max_steps=given.steps,
            evaluate_every=given.steps,
            max_seconds=1e6,
        )
        with tempfile.TemporaryDirectory() as folder:
            some = drawn(given.pairs, Path(folder) / "pairs.csv")
            config = dataclasses.replace(config, data=str(some))
            measured.append(measure("MiniLM, 32 pairs of STS-b", ways, config, given.rounds))
            if has_peer and given.curve_steps:
                steps = given.curve_steps
                curve = curves(dataclasses.replace(config, max_steps=steps, evaluate_every=steps))

    print(shown(measured))
    if curve is not None:
        print(
            f"\nlosses of {curve['steps']} steps without dropout: ours and the peer's are "
            f"{curve['median_difference']:.1e} of them apart in the median, "
            f"{curve['largest_difference']:.1e} at most"
        )
    if not has_peer:
        print(f"\n{PEER} is not in this environment; see benchmarks/training_peers.py")
    missed = misses(measured, curve)
    print("\n" + ("; ".join(missed) or "every aim is met"))
    document = {
        "made_with": versions(given.threads),
        "limits": {"of_bare": LEAST_OF_BARE, "of_peer": LEAST_OF_PEER, "loss": LARGEST_DIFFERENCE},
        "measured": measured,
        "curve": curve,
        "largest_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "missed": missed,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


def drawn(pairs: Path, path: Path, train_rows: int = 2000, report_rows: int = 40) -> Path:
    """Copy some rows of a table of pairs, drawn at random: every turn reads and measures them."""
    with pairs.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    held = [row for row in rows if row[-1] in ("report", "test")]
    kept = [row for row in rows if row[-1] not in ("report", "test")]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *kept[:train_rows], *held[:report_rows]])
    return path


def versions(threads: int) -> dict[str, Any]:
    """Return what this was measured with."""
    found: dict[str, Any] = {"python": platform.python_version(), "threads": threads}
    for name in ("torch", "transformers", "sentence-transformers", "accelerate"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
