"""The run folder's state.pt: what a training that was stopped goes on from, to the same losses.

It holds the weights of the step that it was taken at, the optimizer's averages and the course of
its rate, what was watched so far, and the config that it was begun with. It is written whole or not
at all, now and then, and removed when the training has come to its end.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twinserve.errors import ConfigError
from twinserve.manifest import write_atomically
from twinserve.train import checkpoint, own
from twinserve.train.config import TrainConfig, overridden

FILE = "state.pt"
FORMAT = 1
# What shapes no step: a run goes on with others.
FREE = ("data", "out", "max_seconds", "save_seconds", "tensorboard")


@dataclass(frozen=True)
class State:
    """A training at one step."""

    config: TrainConfig  # as it was asked for
    steps: dict[str, Any]  # of Stepper.state_dict
    watched: dict[str, Any]  # of Keeper.state_dict
    alarm: dict[str, Any]  # of CollapseAlarm.state_dict
    seconds: float  # spent so far, evaluations included
    data_digest: str


def save(folder: Path, state: State) -> None:
    """Write state.pt."""
    buffer = io.BytesIO()
    document = {**vars(state), "config": state.config.to_dict(), "format": FORMAT}
    torch.save(document, buffer)
    write_atomically(folder / FILE, buffer.getvalue())


def load(folder: Path) -> State:
    """Read state.pt.

    Raises:
        ConfigError: nothing there to go on from.
        DataError: a damaged file, or one of a newer format.
    """
    path = folder / FILE
    try:
        document = checkpoint.read_document(path, FORMAT, "state of a training")
    except FileNotFoundError as error:
        ended = (folder / checkpoint.FILE).exists()
        raise ConfigError(
            f"the training in {folder} came to its end, so there is nothing to resume; train anew, "
            "with other max_steps if it was too short"
            if ended
            else f"{folder} holds no {FILE} to resume from; name the folder that was --out of the "
            "training that was stopped"
        ) from error
    del document["format"]
    return State(**{**document, "config": TrainConfig.from_dict(document["config"])})


def remove(folder: Path) -> None:
    """Remove state.pt, if there is one."""
    (folder / FILE).unlink(missing_ok=True)


def config_to_resume(folder: Path | str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Return the config that a stopped training goes on with.

    Args:
        folder: of the run.
        overrides: `key=value` each, of `FREE` keys; `check_same` refuses others.

    Raises:
        ConfigError, DataError: as `load`; an override that is none; or a twin that is code of the
            user's own, which nobody asked to be imported.
    """
    config = load(Path(folder)).config
    if config.is_own:
        own.refuse_unasked(config.twin)
    return overridden(config, [*overrides, f"out={folder}"])


def check_same(state: State, config: TrainConfig, folder: Path) -> None:
    """Refuse to go on by another config than the one that a training was begun with.

    Raises:
        ConfigError: names the settings that differ.
    """
    begun, asked = state.config.to_dict(), config.to_dict()
    differing = [key for key in asked if key not in FREE and asked[key] != begun[key]]
    if differing:
        key = differing[0]
        more = f" ({', '.join(differing[1:])} differ too)" if differing[1:] else ""
        raise ConfigError(
            f"{key} is {asked[key]!r}, and the training in {folder} was begun with "
            f"{begun[key]!r}{more}; resume with the settings that it has, or train anew into "
            "another folder"
        )
