"""What choosing costs: each loss and miner over a large batch, against a step of a ResNet-18.

    .venv/bin/python benchmarks/objective_cost.py

An objective is timed forward and backward over ready embeddings, 128 classes of 4 by default, its
figures included; the step is forward, backward and Adam of our ResNet-18 on 32 pictures of 224 x
224. Rounds take turns, so that a machine whose speed drifts slows all; shown are medians and the
share of a step, taken round by round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from twinserve.manifest import ImageInput
from twinserve.train.build import put_channels_last
from twinserve.train.config import LOSSES, TrainConfig
from twinserve.train.objective import Objective
from twinserve.train.resnet import resnet


def main() -> None:
    """Measure every loss with every miner."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--classes", type=int, default=128, help="of 4 items each (%(default)s)")
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    step = resnet_step()
    timed = {
        f"{loss}, {miner}": objective_step(loss, miner, given.classes, given.dimension)
        for loss, miners in LOSSES.items()
        for miner in miners
    }
    for run in (step, *timed.values()):
        run()
    steps: list[float] = []
    costs: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(given.rounds):
        steps.append(seconds(step))
        for name, run in timed.items():
            costs[name].append(seconds(run))
    print(
        f"ResNet-18, 32 x 224 x 224, {given.threads} threads: {statistics.median(steps):.2f} s; "
        f"over {4 * given.classes} embeddings of {given.dimension}:"
    )
    for name, taken in costs.items():
        share = statistics.median(cost / whole for cost, whole in zip(taken, steps, strict=True))
        print(f"{name:35} {statistics.median(taken) * 1e3:7.1f} ms {share:6.1%} of a step")


def resnet_step() -> Callable[[], None]:
    """Return a step of a ResNet-18 on one batch of noise."""
    contract = ImageInput(height=224, width=224, channels=3, color_order="RGB")
    twin = resnet(18, contract, dimension=128).train()
    put_channels_last(twin)
    optimizer = torch.optim.Adam(twin.parameters())
    pixels = torch.randint(0, 256, (32, 224, 224, 3), dtype=torch.uint8)

    def run() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(twin(pixels).square().sum())
        optimizer.step()

    return run


def objective_step(loss: str, miner: str, classes: int, dimension: int) -> Callable[[], None]:
    """Return an objective's forward and backward over one batch of embeddings."""
    objective = Objective(
        TrainConfig(loss=loss, mining=miner, metric="euclidean", dimension=dimension)
    )
    labels = torch.arange(classes).repeat_interleave(4)
    # Unit vectors, as near to their class as a half-trained twin's.
    centres = torch.randn(classes, dimension).repeat_interleave(4, dim=0)
    embeddings = torch.nn.functional.normalize(centres + torch.randn(len(labels), dimension), dim=1)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        leaf = embeddings.clone().requires_grad_()
        torch.autograd.backward(objective(leaf, labels, generator)[0])

    return run


def seconds(run: Callable[[], None]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
