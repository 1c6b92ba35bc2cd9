"""One step of a training, from a batch to gradients, and from gradients to new weights.

Three ways lead to the same gradients. A whole batch goes through the twin once. Where `mini_batch`
is set, its rows go through a few at a time and the loss is measured over all their embeddings,
whose gradient then goes back through the twin part by part, embedded once more: memory holds one
part, and the miners and the loss see the whole batch (Gao et al., 2021, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup"). Of several processes each embeds its own rows,
measures the loss over all, and sends back what belongs to its rows; gradients are then summed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twinserve.errors import ConfigError
from twinserve.train.augment import Augmented
from twinserve.train.averaging import WeightAverage
from twinserve.train.config import TrainConfig
from twinserve.train.data import Batch, IntArray
from twinserve.train.hardware import Hardware
from twinserve.train.heads import wide
from twinserve.train.matryoshka import Matryoshka
from twinserve.train.objective import Figures, Objective
from twinserve.train.optimizer import optimizer_of, schedule_of
from twinserve.train.pairs import LinkBatch
from twinserve.train.processes import Processes
from twinserve.train.twins import Twin


class Stepper:
    """Takes the steps of a training. Each draws from seeds of its own, so a resumed one repeats.

    Args:
        twin: to be trained, on the hardware's device.
        objective: likewise.
        augmented: gives the inputs of a batch.
        config: gives rates, clip, `mini_batch` and seed.
        hardware: where to run.
        processes: with whom.
    """

    def __init__(
        self,
        twin: Twin,
        objective: Objective | Matryoshka,
        augmented: Augmented,
        config: TrainConfig,
        hardware: Hardware,
        processes: Processes,
    ) -> None:
        self._twin = twin
        self._objective = objective
        self._augmented = augmented
        self._config = config
        self._hardware = hardware
        self._processes = processes
        self._weights = [*twin.parameters(), *objective.parameters()]
        self._optimizer = optimizer_of(twin, objective, config)
        self._schedule = schedule_of(self._optimizer, config)
        self._scaler = hardware.scaler()
        self._generator = torch.Generator()
        self.average = WeightAverage(twin, config.weight_average)

    def measure(self, batch: Batch | LinkBatch, step: int) -> Figures:
        """Embed a batch and leave the gradients of its loss in the weights.

        Nothing is moved yet: the caller looks at the loss first.

        Raises:
            ConfigError: the batch has too few rows for every part of every process.
        """
        self._generator.manual_seed(self._config.seed * 1_000_003 + step)
        inputs = self._augmented(batch, self._generator, self._processes.own(len(batch.items)))
        self._optimizer.zero_grad()
        self._twin.train()
        if self._config.mini_batch or self._processes.count > 1:
            return self._measure_by_parts(batch, inputs, step)
        embeddings = self._embed(inputs, (step,))
        loss, figures = self._loss(batch, embeddings, step)
        if math.isfinite(figures.loss):
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return figures

    def move(self) -> None:
        """Clip the gradients and move the weights along them."""
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._weights, self._config.gradient_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self.average.update()

    @property
    def learning_rate(self) -> float:
        """Of the first group of weights, at the step to come."""
        return float(self._schedule.get_last_lr()[0])

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on, beside the config and the data."""
        return {
            "twin": self._twin.state_dict(),
            "objective": self._objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._twin.load_state_dict(state["twin"])
        self._objective.load_state_dict(state["objective"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.average.load_state_dict(state.get("average", {}))  # states of before have none

    def _measure_by_parts(
        self, batch: Batch | LinkBatch, inputs: tuple[Tensor, ...], step: int
    ) -> Figures:
        rows = len(batch.items)
        parts = self._parts(rows)
        if rows // self._processes.count < len(parts):
            # Few networks bear a part of no rows; all processes come to this answer.
            raise ConfigError(
                f"a batch of {rows} rows does not reach {self._processes.count} processes in "
                f"{len(parts)} parts each; make batches larger, or take fewer processes"
            )
        first = int(parts[0][0])

        def inputs_of(part: IntArray) -> tuple[Tensor, ...]:
            return tuple(one[torch.from_numpy(part - first)] for one in inputs)

        alone = len(parts) == 1  # its graph is kept: nothing is embedded twice
        found = []
        for part in parts:
            with torch.set_grad_enabled(alone), _running_averages_kept(self._twin, not alone):
                found.append(self._embed(inputs_of(part), (step, int(part[0]))))
        own = torch.cat([wide(embeddings.detach()) for embeddings in found])
        leaf = self._processes.gather(own, rows).requires_grad_()
        loss, figures = self._loss(batch, leaf, step)
        if not math.isfinite(figures.loss):
            return figures
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        for part, embeddings in zip(parts, found, strict=True):
            if not alone:
                embeddings = self._embed(inputs_of(part), (step, int(part[0])))
            embeddings.backward(leaf.grad[part].to(embeddings.dtype))  # type: ignore[no-untyped-call]
        # The objective's own weights have the whole gradient in every process already.
        self._processes.sum_gradients(self._twin.parameters())
        return figures

    def _parts(self, rows: int) -> list[IntArray]:
        """Divide this process's rows into parts; all processes have equally many.

        Batch norms that are shared wait for each other, part by part.
        """
        most = math.ceil(rows / self._processes.count)
        size = self._config.mini_batch or most
        return np.array_split(self._processes.own(rows), math.ceil(most / size))

    def _embed(self, inputs: Sequence[Tensor], seeds: tuple[int, ...]) -> Tensor:
        # Dropout draws from torch's own generator: the same for the same rows, embedded again.
        torch.manual_seed(int(np.random.default_rng([self._config.seed, *seeds]).integers(2**62)))
        device = self._hardware.device
        with self._hardware.autocast():
            embeddings: Tensor = self._twin(*(one.to(device, non_blocking=True) for one in inputs))
        return embeddings

    def _loss(
        self, batch: Batch | LinkBatch, embeddings: Tensor, step: int
    ) -> tuple[Tensor, Figures]:
        done = step / self._config.max_steps
        return self._objective.of_batch(batch, embeddings, self._generator, done)


@contextlib.contextmanager
def _running_averages_kept(twin: nn.Module, kept: bool) -> Iterator[None]:
    """Leave the running averages of batch norms alone: the rows come by a second time."""
    norms = [
        module
        for module in twin.modules()
        if kept and isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
