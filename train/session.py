"""A training that is set up: its data, its twin, and all that takes and watches its steps.

In: a config, and perhaps the state of a training that was stopped. Out: a `Session`, at the step to
come, which can save its state.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from twinserve.errors import ConfigError, DataError
from twinserve.manifest import write_atomically
from twinserve.train import state
from twinserve.train.augment import Augmented
from twinserve.train.build import begin, build, put_channels_last
from twinserve.train.check import check
from twinserve.train.config import TrainConfig
from twinserve.train.faults import Faults
from twinserve.train.hardware import hardware_of
from twinserve.train.health import CollapseAlarm
from twinserve.train.material import LinkMaterial, Material
from twinserve.train.matryoshka import objective_of
from twinserve.train.processes import Processes, share_batch_norms
from twinserve.train.record import Keeper, write_json
from twinserve.train.state import State
from twinserve.train.step import Stepper
from twinserve.train.task import Task, read, task_of


@dataclass
class Session:
    """A training between two steps."""

    folder: Path
    asked: TrainConfig
    material: Material | LinkMaterial
    task: Task
    stepper: Stepper
    keeper: Keeper
    alarm: CollapseAlarm
    processes: Processes
    spent: float  # seconds before this start
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Spent on the training so far, earlier starts included."""
        return self.spent + self.here

    @property
    def here(self) -> float:
        """Seconds since this start."""
        return time.monotonic() - self.started

    def save_state(self) -> None:
        """Write what this training can be resumed from."""
        if self.processes.leads:
            done = State(
                config=self.asked,
                steps=self.stepper.state_dict(),
                watched=self.keeper.state_dict(),
                alarm=self.alarm.state_dict(),
                seconds=self.seconds,
                data_digest=self.material.digest,
            )
            state.save(self.folder, done)


def open_session(
    config: TrainConfig, processes: Processes, *, progress: bool, resume: bool
) -> Session:
    """Set a training up; see `loop.train` for arguments and errors."""
    folder = _run_folder(config)
    hardware = hardware_of(config, processes.local_rank)
    processes.join(hardware.device)
    before = state.load(folder) if resume else None
    if before is not None:
        state.check_same(before, config, folder)
    material = _material(folder, config, progress, processes.leads)
    if before is not None and material.digest != before.data_digest:
        raise DataError(
            f"{config.data} has changed since the training in {folder} was begun; bring the data "
            "back, or train anew into another folder"
        )
    if processes.leads and before is None:
        state.remove(folder)
        write_atomically(folder / "config.toml", config.to_toml().encode())
    task = task_of(material, config)
    torch.manual_seed(config.seed)
    twin = build(config, material.contract, material.tokenizer)
    begin(twin, config, task.training)
    put_channels_last(twin)
    asked, config = config, dataclasses.replace(config, dimension=twin.dimension)
    objective = objective_of(config, task.classes)
    twin.to(hardware.device)
    objective.to(hardware.device)
    processes.same_weights(twin, objective)
    share_batch_norms(twin, processes)
    augmented = Augmented(task.training.rows, twin.contract, config)
    stepper = Stepper(twin, objective, augmented, config, hardware, processes)
    session = Session(
        folder=folder,
        asked=asked,
        material=material,
        task=task,
        stepper=stepper,
        keeper=Keeper(folder, stepper.average.twin, config, material, processes.leads),
        alarm=CollapseAlarm(config),
        processes=processes,
        spent=0.0,
    )
    if before is not None:
        session.stepper.load_state_dict(before.steps)
        session.keeper.load_state_dict(before.watched)
        session.alarm.load_state_dict(before.alarm)
        session.spent = before.seconds
    if progress:
        print(f"note: on {hardware}{processes.said}", file=sys.stderr)
    return session


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


def _material(
    folder: Path, config: TrainConfig, progress: bool, writes: bool
) -> Material | LinkMaterial:
    """Read, check and split the data, and write down what was found in them."""
    faults = Faults()
    material = read(config, faults)
    checked = check(material, config, faults)
    if writes:
        write_json(folder / "data.json", checked.to_dict(most_items=20))
    checked.refuse()
    if progress:
        for finding in checked.findings:
            print(f"note: {finding.message}", file=sys.stderr)
    if writes:
        write_json(folder / "splits.json", material.splits.to_dict())
    return material
