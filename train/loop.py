"""The training loop: labelled items, pairs or triplets in, a run folder out.

The folder holds data.json (what was found in the data), splits.json, checkpoint.pt (the best twin
on the calibrate part so far, written whole each time), log.csv, and in the end report.html with its
figures in report.json and evaluation.json, roc.png and distances.png. The report part is looked at
once, after the last step: it chooses nothing.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from twinserve.errors import ConfigError, NotFinite
from twinserve.train import checkpoint
from twinserve.train.augment import Augmented
from twinserve.train.build import begin, build, put_channels_last
from twinserve.train.check import check
from twinserve.train.checkpoint import Run
from twinserve.train.config import ENCODERS, TrainConfig
from twinserve.train.data import Labelled
from twinserve.train.faults import Faults
from twinserve.train.health import CollapseAlarm
from twinserve.train.material import LinkMaterial, Material
from twinserve.train.matryoshka import objective_of
from twinserve.train.objective import Figures
from twinserve.train.optimizer import optimizer_of, schedule_of
from twinserve.train.outcome import write_report
from twinserve.train.record import Keeper, write_json
from twinserve.train.task import read, task_of


def train(config: TrainConfig, progress: bool = True) -> Run:
    """Train a twin, and return its run as loaded from the folder `config.out`.

    Equal configs on equal data, machine and thread count give equal weights, as long as
    `max_seconds` does not cut in. An interrupt (Ctrl-C) ends the training as if its steps were
    over: the best twin so far is evaluated and kept.

    Args:
        config: everything that shapes the run.
        progress: show a bar on standard error.

    Raises:
        ConfigError: no data or no run folder named, or a loss that does not take such data.
        DataError: the data cannot be read or split, or would spoil the training.
        NotFinite: the loss became NaN or infinite; failed_batch.json tells where.
    """
    folder = _run_folder(config)
    material = _material(folder, config, progress)
    task = task_of(material, config)
    torch.manual_seed(config.seed)
    twin = build(config, material.contract, material.tokenizer)
    begin(twin, config, task.training)
    put_channels_last(twin)
    config = dataclasses.replace(config, dimension=twin.dimension)
    objective = objective_of(config, task.classes)
    weights = [*twin.parameters(), *objective.parameters()]
    optimizer = optimizer_of(twin, objective, config)
    schedule = schedule_of(optimizer, config)
    augmented = Augmented(task.training.rows, twin.contract, config)
    generator = torch.Generator()
    # A log file gets a line now and then, a terminal a bar that moves.
    pause = 0.1 if sys.stderr.isatty() else 15.0
    bar = tqdm(
        total=config.max_steps, disable=not progress, unit="step", desc="train", mininterval=pause
    )
    keeper = Keeper(folder, twin, config, material)
    alarm = CollapseAlarm(config)
    started = time.monotonic()
    stopped = "max_steps"

    with bar, keeper:
        try:
            if config.twin in ENCODERS:
                # What the encoder can do already is what training has to beat.
                keeper.evaluate(0)
            for step in range(config.max_steps):
                batch = task.batches[step]
                # Each step draws from its own seed, so that a resumed run repeats it.
                generator.manual_seed(config.seed * 1_000_003 + step)
                inputs = augmented(batch, generator)
                embeddings = twin.train()(*inputs)
                done = step / config.max_steps
                loss, figures = objective.of_batch(batch, embeddings, generator, done)
                if not math.isfinite(figures.loss):
                    raise _not_finite(folder, task.training, batch.items.tolist(), step, figures)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(weights, config.gradient_clip)
                optimizer.step()
                schedule.step()

                bar.update()
                keeper.note(figures, len(embeddings))
                alarm.note(figures)
                late = time.monotonic() - started >= config.max_seconds
                if late or (step + 1) % config.evaluate_every == 0 or step + 1 == config.max_steps:
                    bar.set_postfix_str(keeper.evaluate(step + 1))
                    alarm.check()
                if late:
                    stopped = "max_seconds"
                elif keeper.out_of_patience(step + 1):
                    stopped = "patience"
                if stopped != "max_steps":
                    break
        except KeyboardInterrupt:
            stopped = "interrupted"
        if keeper.best_step is None:
            keeper.evaluate(keeper.steps)
    write_report(folder, material, stopped, keeper.steps, time.monotonic() - started)
    return checkpoint.load(folder)


def _material(folder: Path, config: TrainConfig, progress: bool) -> Material | LinkMaterial:
    """Read, check and split the data, and write down what was found in them."""
    faults = Faults()
    material = read(config, faults)
    checked = check(material, config, faults)
    write_json(folder / "data.json", checked.to_dict(most_items=20))
    checked.refuse()
    if progress:
        for finding in checked.findings:
            print(f"note: {finding.message}", file=sys.stderr)
    write_json(folder / "splits.json", material.splits.to_dict())
    return material


def _run_folder(config: TrainConfig) -> Path:
    for key in ("data", "out"):
        if not getattr(config, key):
            raise ConfigError(
                f"{key} is not set; name the {'data set' if key == 'data' else 'run folder'}, "
                f"as in `twinserve train --data PATH --out RUN_DIR`"
            )
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out is {config.out!r}, which cannot be a folder: {error}") from error
    return folder


def _not_finite(
    folder: Path, training: Labelled, items: list[int], step: int, figures: Figures
) -> NotFinite:
    names = [training.names[item] for item in items]
    write_json(folder / "failed_batch.json", {"step": step, "items": names})
    return NotFinite(
        f"the loss is {figures.loss} at step {step}; its batch is in {folder}/failed_batch.json. "
        "Lower learning_rate or gradient_clip, or look for an item that is out of place",
        metadata={"step": str(step)},
    )
