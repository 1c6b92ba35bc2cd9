"""Every twin, head, loss and way of mining, trained once on real data, a few dozen steps each.

    .venv/bin/python -m benchmarks.every_row --minilm MODEL_FOLDER --stsb stsb-en-train.csv

Drawings are Omniglot's small background set and questions the sample of banking77, both of this
repository; STS-b's scored pairs and a MiniLM to fine-tune are taken where they are given. A row
says what its twin reaches on classes or pairs that it never saw, and what is reached without it
(nearest pixels, bags of words, the vectors as they are, or the encoder before its fine-tuning). It
shows that a row works, not how good it can get: benchmarks/loss_table.py compares at length.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from twinserve.train.config import TrainConfig
from twinserve.train.loop import train

ROOT = Path(__file__).parent.parent
DRAWINGS = ROOT / "data" / "omniglot" / "images_background_small1.zip"
QUESTIONS = ROOT / "data" / "banking77" / "sample.csv"
RESULTS = Path(__file__).parent / "results" / "every_row.json"
# In the order in which what a form of data is measured by is looked for.
MEASURES = ("one_shot", "spearman", "equal_error_rate", "right_order", "recall_at_1")


def main() -> None:
    """Train each row, keep its figures, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minilm", type=Path, help="folder of a sentence-transformers model")
    parser.add_argument("--stsb", type=Path, help="CSV without header: two sentences, score 0..5")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: dict[str, Any] = {}
    if given.results.exists():
        found = json.loads(given.results.read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for row, settings in rows(folder, given.minilm, given.stsb):
            if given.only not in row:
                continue
            try:
                found[row] = run(folder, settings, given.steps)
            except Exception as error:  # the others are still to be seen
                found[row] = {"failed": f"{type(error).__name__}: {error}"}
            print(row, found[row], flush=True)
            given.results.write_text(json.dumps(found, indent=1) + "\n")
    print("\n| row | measure | without the twin | with it | seconds |\n|---|---|---|---|---|")
    for row, one in found.items():
        if "failed" in one:
            print(f"| {row} | {one['failed']} | | | |")
        else:
            before = f"{one['before']:.3f}" if one["before"] is not None else "-"
            print(
                f"| {row} | {one['measure']} | {before} | {one['after']:.3f} | {one['seconds']} |"
            )


def rows(
    folder: Path, minilm: Path | None, stsb: Path | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row's name and settings; what data it needs is written into the folder."""
    drawn = {"data": str(DRAWINGS), **_of_drawings()}
    asked = {"data": str(QUESTIONS), "classes_per_batch": 16, "calibrate_fraction": 0.25}
    pictures = _pictures(folder)
    for twin, more in {
        "conv4": {},
        "resnet18": {"stem": "small", "classes_per_batch": 8},
        "resnet34": {"stem": "imagenet", "classes_per_batch": 8},
        "resnet50": {"stem": "imagenet", "classes_per_batch": 8, "cut": "layer3"},
    }.items():
        yield f"{twin}, supervised contrastive", {**drawn, "twin": twin, **more}
    for loss, mining in (
        *itertools.product(["contrastive"], ["random", "semi_hard", "batch_hard"]),
        ("cosine_mse", "random"),
        ("concatenation", "random"),
        *itertools.product(["triplet"], ["random", "semi_hard", "batch_hard", "batch_all"]),
        ("triplet", "random,semi_hard:2,batch_hard:2"),
        ("multiple_negatives", "random"),
        ("metric_learning:ArcFaceLoss", "random"),
        ("metric_learning:MultiSimilarityLoss", "random"),
    ):
        yield f"conv4, {loss}, {mining}", {**drawn, "loss": loss, "mining": mining, "margin": 0.2}
    yield "conv4, Matryoshka 32 and 16", {**drawn, "matryoshka": (32, 16)}
    yield "conv4, bfloat16", {**drawn, "precision": "bf16"}
    yield "conv4, a batch in parts of 32", {**drawn, "mini_batch": 32}
    vectors = {"data": str(_vectors(folder, pictures)), "twin": "mlp"}
    yield "mlp on pixels as vectors", vectors
    yield "words, supervised contrastive", {**asked, "twin": "words"}
    yield "words, concatenation", {**asked, "twin": "words", "loss": "concatenation"}
    links = _links(folder, pictures)
    common = {**_of_pixels(), "score_range": "", "max_broken_images": 0}
    for name, loss in (
        ("pairs", "contrastive"),
        ("pairs", "concatenation"),
        ("same", "multiple_negatives"),
        ("triplets", "triplet"),
    ):
        yield (
            f"conv4 on {name} of drawings, {loss}",
            {"data": str(links[name]), **common, "loss": loss, "margin": 0.2},
        )
    if stsb is not None:
        scored = {
            "data": str(_with_header(folder, stsb)),
            "score_range": "0..5",
            "allow_shared_items": True,
            "loss": "cosine_mse",
            "different_cosine": 0.0,
        }
        yield "words on STS-b, cosine + MSE", {**scored, "twin": "words"}
        if minilm is not None:
            encoder = {"twin": "text_encoder", "weights": str(minilm), "pairs_per_batch": 16}
            yield "MiniLM on STS-b, cosine + MSE", {**scored, **encoder}
    if minilm is not None:
        encoder = {"twin": "text_encoder", "weights": str(minilm), "classes_per_batch": 8}
        yield "MiniLM on banking77, supervised contrastive", {**asked, **encoder}
        frozen = {**encoder, "freeze": "encoder", "dimension": 64}
        yield "MiniLM frozen, a projection to 64", {**asked, **frozen}
        layered = {**encoder, "layer_decay": 0.8, "freeze": "2", "matryoshka": (128, 64)}
        yield "MiniLM, rates by layer, two frozen, Matryoshka", {**asked, **layered}


def run(folder: Path, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train one row, and return its figures."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        changes = {"max_steps": steps, "evaluate_every": steps, "out": out, "save_seconds": 1e9}
        finished = train(TrainConfig(**{**settings, **changes}), progress=False)
    results = finished.results
    if results["stopped"] in ("interrupted", "terminated"):
        raise SystemExit("told to stop")
    report = results["report"]
    values = {**report, **report.get("values", {})}
    measure = next(one for one in MEASURES if one in values)
    after, before = values[measure], results.get("baseline", {}).get(measure)
    if measure == "one_shot":
        after = after["accuracy"]
        before = next(
            (value for name, value in results.items() if name.endswith("_one_shot")), None
        )
    return {
        "measure": measure,
        "before": before,
        "after": after,
        "best_step": finished.step,
        "seconds": round(time.monotonic() - started, 1),
    }


def _of_pixels() -> dict[str, Any]:
    return {"image_size": 28, "ink_inverted": True, "rotate_degrees": 10.0, "shift": 0.08}


def _of_drawings() -> dict[str, Any]:
    return {
        **_of_pixels(),
        "train_groups": ("Korean", "Balinese", "Early_Aramaic"),
        "calibrate_groups": ("Greek",),
        "report_groups": ("Latin",),
        "classes_per_batch": 16,
        "rotations": True,
        "one_shot_trials": 2000,
    }


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """Unzip the drawings; return the files of each character."""
    with zipfile.ZipFile(DRAWINGS) as archive:
        archive.extractall(folder / "drawings")
    found: dict[str, list[Path]] = {}
    for path in sorted((folder / "drawings").rglob("*.png")):
        found.setdefault("/".join(path.parts[-3:-1]), []).append(path)
    return found


def _vectors(folder: Path, pictures: dict[str, list[Path]]) -> Path:
    """Write the drawings' pixels as vectors, 14 x 14."""
    vectors, labels = [], []
    for label, files in enumerate(pictures.values()):
        for file in files:
            small = Image.open(file).convert("L").resize((14, 14), Image.Resampling.BOX)
            vectors.append(1.0 - np.asarray(small, np.float32).ravel() / 255.0)
            labels.append(label)
    path = folder / "vectors.npz"
    np.savez(path, vectors=np.stack(vectors), labels=np.array(labels))
    return path


def _links(folder: Path, pictures: dict[str, list[Path]]) -> dict[str, Path]:
    """Write pairs and triplets of drawings: two characters hang together, as rivals."""
    generator = np.random.default_rng(0)
    tables: dict[str, list[tuple[str, ...]]] = {"pairs": [], "same": [], "triplets": []}
    characters = list(pictures.values())
    for one, other in zip(characters[::2], characters[1::2], strict=True):
        for own, rival in ((one, other), (other, one)):
            for _ in range(8):
                a, b = (str(own[place]) for place in generator.choice(20, 2, replace=False))
                c = str(rival[generator.integers(20)])
                tables["pairs"] += [(a, b, "1"), (a, c, "0")]
                tables["same"].append((a, b, "1"))
                tables["triplets"].append((a, b, c))
    headers = {"triplets": ("anchor", "positive", "negative")}
    paths = {}
    for name, lines in tables.items():
        paths[name] = folder / f"{name}.csv"
        with open(paths[name], "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([headers.get(name, ("file1", "file2", "same")), *lines])
    return paths


def _with_header(folder: Path, path: Path) -> Path:
    """Copy the first 3,000 scored pairs under a header."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(itertools.islice(csv.reader(file), 3000))
    written = folder / "scored.csv"
    with open(written, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence1", "sentence2", "score"), *lines])
    return written


if __name__ == "__main__":
    main()
