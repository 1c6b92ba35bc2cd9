"""Losses and miners side by side: equal twins, equal batches, equal steps, several seeds.

    .venv/bin/python -m benchmarks.loss_table --omniglot images_background.zip --banking77 train.csv

Omniglot: conv4 on 28 x 28, 32 classes of 4 a batch with quarter turns as classes, split by
alphabets as the preset omniglot_background names them. The figures are of its four report
alphabets, 20-way one-shot within an alphabet over 4,000 trials. The forward pass runs in bfloat16.
banking77: averaged word vectors learned from scratch; a fifth of the intents calibrates, a fifth
reports. No number of a loss was tuned here: they are what docs/losses.md advises. Each run's twin
is that of its last step. Finished runs are kept in the file of results and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from twinserve.train.config import TrainConfig, load_config
from twinserve.train.loop import train

RESULTS = Path(__file__).parent / "results" / "losses.json"
LOSSES: dict[str, dict[str, Any]] = {
    "cosine + MSE": {"loss": "cosine_mse", "different_cosine": 0.0},
    "concatenation": {"loss": "concatenation"},
    "contrastive": {"loss": "contrastive", "margin": 0.5},
    "triplet, random": {"loss": "triplet", "margin": 0.2},
    "triplet, semi-hard": {"loss": "triplet", "margin": 0.2, "mining": "semi_hard"},
    "triplet, batch-hard": {"loss": "triplet", "margin": 0.2, "mining": "batch_hard"},
    "supervised contrastive": {"loss": "supervised_contrastive", "temperature": 0.1},
}
OF_TEXTS = ("cosine + MSE", "contrastive", "triplet, semi-hard", "supervised contrastive")
# What is shown of a run's report, and how.
FIGURES = {"one_shot": "one-shot", "equal_error_rate": "EER", "recall_at_1": "recall@1"}


def main() -> None:
    """Run what is missing in the file of results, and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--omniglot", type=Path, help="images_background.zip")
    parser.add_argument("--banking77", type=Path, help="train.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="of Omniglot (%(default)s)")
    parser.add_argument("--text-steps", type=int, default=400, help="of banking77 (%(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    done = json.loads(given.results.read_text()) if given.results.exists() else []
    for seed in given.seeds:
        for loss, settings in LOSSES.items():
            asked = []
            if given.omniglot:
                asked.append(("Omniglot", given.steps, of_drawings(given.omniglot)))
            if given.banking77 and loss in OF_TEXTS:
                asked.append(("banking77", given.text_steps, of_texts(given.banking77)))
            for data, steps, common in asked:
                name = {"data": data, "loss": loss, "seed": seed, "steps": steps}
                if any(name.items() <= row.items() for row in done):
                    continue
                changes = {"max_steps": steps, "evaluate_every": steps, "seed": seed}
                figures = run(TrainConfig(**{**common, **settings, **changes}))
                done.append({**name, "threads": given.threads, **figures})
                given.results.write_text(json.dumps(done, indent=1) + "\n")
                print(done[-1], flush=True)
    for data in ("Omniglot", "banking77"):
        print(f"\n{data}\n{table([row for row in done if row['data'] == data])}")


def of_drawings(path: Path) -> dict[str, Any]:
    """Return the settings that all runs on Omniglot share."""
    split = load_config("omniglot_background")
    return {
        "data": str(path),
        "train_groups": split.train_groups,
        "calibrate_groups": split.calibrate_groups,
        "report_groups": split.report_groups,
        "precision": "bf16",
        "ink_inverted": True,
        "rotations": True,
        "rotate_degrees": 10.0,
        "scale": 0.2,
        "shear": 0.2,
        "shift": 0.08,
        "one_shot_trials": 4000,
        "max_seconds": 1e9,
        "save_seconds": 1e9,
    }


def of_texts(path: Path) -> dict[str, Any]:
    """Return the settings that all runs on banking77 share."""
    return {
        "data": str(path),
        "twin": "words",
        "one_shot_trials": 4000,
        "max_seconds": 1e9,
        "save_seconds": 1e9,
    }


def run(config: TrainConfig) -> dict[str, float]:
    """Train, and return the figures of the report part."""
    started, used = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        finished = train(TrainConfig(**{**config.to_dict(), "out": folder}), progress=False)
        measured = json.loads((Path(folder) / "evaluation.json").read_text())
    if finished.results["stopped"] in ("interrupted", "terminated"):
        raise SystemExit("told to stop")
    report = finished.results["report"]
    return {
        "one_shot": report["one_shot"]["accuracy"],
        "equal_error_rate": report["equal_error_rate"],
        "recall_at_1": measured["retrieval"]["recalls"][0]["recall"]["value"],
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the mean and standard deviation of each loss over its seeds, as Markdown."""
    lines = [f"| loss | seeds | {' | '.join(FIGURES.values())} |"]
    lines.append("|---|---|" + "---|" * len(FIGURES))
    for loss in LOSSES:
        found = [row for row in rows if row["loss"] == loss]
        if not found:
            continue
        cells = [_spread([row[figure] for row in found]) for figure in FIGURES]
        lines.append(f"| {loss} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1%} ± {100 * deviation:.1f}"


if __name__ == "__main__":
    main()
