"""The training loop: labelled items, pairs or triplets in, a run folder out.

The folder holds config.toml, data.json (what was found in the data), splits.json, checkpoint.pt
(the best twin on the calibrate part so far, written whole each time), log.csv, state.pt while there
is something to resume, and in the end report.html with its figures in report.json and
evaluation.json, roc.png and distances.png. The report part is looked at once, after the last step:
it chooses nothing.
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext

from tqdm import tqdm

from twinserve.errors import NotFinite
from twinserve.train import checkpoint, state
from twinserve.train.checkpoint import Run
from twinserve.train.config import ENCODERS, TrainConfig
from twinserve.train.data import Batch
from twinserve.train.interrupts import Interrupts
from twinserve.train.objective import Figures
from twinserve.train.outcome import write_report
from twinserve.train.pairs import LinkBatch
from twinserve.train.processes import Processes
from twinserve.train.record import write_json
from twinserve.train.session import Session, open_session

# Ends of a training that leave nothing to resume.
_COMPLETE = ("max_steps", "patience")


def train(
    config: TrainConfig,
    progress: bool = True,
    resume: bool = False,
    reporting: AbstractContextManager[object] | None = None,
) -> Run:
    """Train a twin, and return its run as loaded from the folder `config.out`.

    Equal configs on equal data, machine and thread count give equal weights, as long as
    `max_seconds` does not cut in; so does a training that was stopped and resumed. An interrupt
    (Ctrl-C, SIGTERM) ends the training after the step at hand: the best twin so far is evaluated
    and kept. Processes that torchrun started take the steps that one would take.

    Args:
        config: everything that shapes the run.
        progress: show a bar on standard error.
        resume: go on from the state.pt in `config.out`.
        reporting: entered while the report is measured and written, after the last step.

    Raises:
        ConfigError: no data or no run folder named, a loss that does not take such data, a device
            that is not there, nothing to resume, or the state of a training by another config.
        DataError: the data cannot be read or split, would spoil the training, or have changed since
            it was begun.
        NotFinite: the loss became NaN or infinite; failed_batch.json tells where.
    """
    with Processes() as processes, Interrupts(says=progress and processes.leads) as interrupts:
        progress = progress and processes.leads
        session = open_session(config, processes, progress=progress, resume=resume)
        stopped = _steps(session, config, interrupts, progress)
        if processes.leads:
            taken = session.keeper.steps
            with reporting or nullcontext():
                write_report(session.folder, session.material, stopped, taken, session.seconds)
            if stopped in _COMPLETE:
                state.remove(session.folder)
        processes.agree((True,))  # the others wait for the report
        return checkpoint.load(session.folder)


def _steps(session: Session, config: TrainConfig, interrupts: Interrupts, progress: bool) -> str:
    """Take the steps that are left, and return why they ended."""
    stepper, keeper, alarm = session.stepper, session.keeper, session.alarm
    # A log file gets a line now and then, a terminal a bar that moves.
    pause = 0.1 if sys.stderr.isatty() else 15.0
    bar = tqdm(
        total=config.max_steps,
        initial=keeper.steps,
        disable=not progress,
        unit="step",
        # What remains by the bar is of the steps alone.
        desc=f"train, {config.max_seconds:g} s at most",
        mininterval=pause,
    )
    saved = time.monotonic()
    stopped = "max_steps"
    with bar, keeper:
        if config.twin in ENCODERS and keeper.best_step is None:
            # What the encoder can do already is what training has to beat.
            keeper.evaluate(stepper.learning_rate)
        for step in range(keeper.steps, config.max_steps):
            batch = session.task.batches[step]
            figures = stepper.measure(batch, step)
            if not math.isfinite(figures.loss):
                raise _not_finite(session, batch, step, figures)
            stepper.move()

            keeper.note(figures, len(batch.items))
            alarm.note(figures)
            bar.set_postfix_str(keeper.line(figures), refresh=False)
            bar.update()
            if (step + 1) % config.evaluate_every == 0 or step + 1 == config.max_steps:
                keeper.evaluate(stepper.learning_rate)
                bar.set_postfix_str(keeper.line(figures))
                alarm.check()
                if time.monotonic() - saved >= config.save_seconds:
                    session.save_state()
                    saved = time.monotonic()
            heard, late, impatient = session.processes.agree(
                (
                    interrupts.heard is not None,
                    session.here >= config.max_seconds,
                    keeper.out_of_patience,
                )
            )
            if step + 1 == config.max_steps:
                break
            if heard or late or impatient:
                stopped = (interrupts.heard or "interrupted") if heard else "max_seconds"
                stopped = "patience" if impatient and not heard else stopped
                break
        if stopped not in _COMPLETE:
            # Before an evaluation that a training without a stop would not have.
            session.save_state()
        if keeper.best_step is None or (stopped == "max_seconds" and not keeper.just_evaluated):
            keeper.evaluate(stepper.learning_rate)
    return stopped


def _not_finite(
    session: Session, batch: Batch | LinkBatch, step: int, figures: Figures
) -> NotFinite:
    names = [session.task.training.names[item] for item in batch.items.tolist()]
    path = session.folder / "failed_batch.json"
    if session.processes.leads:
        write_json(path, {"step": step, "items": names})
    return NotFinite(
        f"the loss is {figures.loss} at step {step}; its batch is in {path}. "
        "Lower learning_rate or gradient_clip, or look for an item that is out of place",
        metadata={"step": str(step)},
    )
