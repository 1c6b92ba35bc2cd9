"""What a batch in parts costs and saves: peak memory, time and loss of steps by size of the parts.

    .venv/bin/python -m benchmarks.mini_batch --size 256

A ResNet-18 takes steps on made pictures of 96 x 96, each size of the parts in a process of its own.
The losses must be equal up to what batch norm makes of smaller parts: --batch-norm no leaves the
norms in eval mode, so that they must be equal to rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from twinserve.manifest import ImageInput
from twinserve.train.augment import Augmented
from twinserve.train.config import TrainConfig
from twinserve.train.data import Batch
from twinserve.train.hardware import hardware_of
from twinserve.train.matryoshka import objective_of
from twinserve.train.processes import Processes
from twinserve.train.resnet import resnet
from twinserve.train.step import Stepper

SIDE = 96


def main() -> None:
    """Measure each size of the parts, or as a child one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="pictures of a batch (%(default)s)")
    parser.add_argument("--parts", type=int, nargs="+", default=[0, 64, 16])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-norm", choices=("yes", "no"), default="no")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measured(given)))
        return
    common = [sys.executable, "-m", "benchmarks.mini_batch", "--child"]
    common += [f"--size={given.size}", f"--steps={given.steps}", f"--threads={given.threads}"]
    common += [f"--batch-norm={given.batch_norm}"]
    print(f"batches of {given.size} pictures, {SIDE} x {SIDE}, ResNet-18, {given.threads} threads")
    print("| rows at a time | peak memory, MiB | of it the step's | s a step | last loss |")
    print("|---|---|---|---|---|")
    for part in given.parts:
        said = subprocess.run([*common, f"--parts={part}"], check=True, stdout=subprocess.PIPE)
        row = json.loads(said.stdout)
        print(
            f"| {part or 'all'} | {row['peak']} | {row['peak'] - row['before']} | "
            f"{row['seconds']:.2f} | {row['loss']:.6f} |"
        )


def measured(given: argparse.Namespace) -> dict[str, float]:
    """Take the steps of one size of the parts."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = TrainConfig(
        twin="resnet18", image_size=SIDE, mini_batch=given.parts[0], dimension=64, max_steps=100
    )
    contract = ImageInput(height=SIDE, width=SIDE, channels=1, color_order="L")
    twin = resnet(18, contract, dimension=64)
    if given.batch_norm == "no":
        for module in twin.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
                module.training = False
    pictures = np.random.default_rng(0).integers(0, 256, (64, SIDE, SIDE, 1), dtype=np.uint8)
    stepper = Stepper(
        twin,
        objective_of(config),
        Augmented(pictures, contract, config),
        config,
        hardware_of(TrainConfig(device="cpu")),
        Processes(),
    )
    places = np.arange(given.size)
    batch = Batch(items=places % 64, turns=np.zeros_like(places), labels=places % 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    started = time.monotonic()
    loss = float("nan")
    for step in range(given.steps):
        loss = stepper.measure(batch, step).loss
        stepper.move()
    return {
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "seconds": (time.monotonic() - started) / given.steps,
        "loss": loss,
    }


if __name__ == "__main__":
    main()
