"""Several processes that train one twin together, each on its rows of every batch.

In: what torchrun says in the environment; without it there is one process, and nothing is sent.
Out: rows gathered, gradients summed, and decisions that all share. A step by several processes is
the step that one would take: each measures the loss over the embeddings of all rows, and sends its
gradient back through its own (step.py), so no gradient is lost on the way, as it is behind a plain
all_gather.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from twinserve.errors import ConfigError
from twinserve.train.data import IntArray


class Processes:
    """The processes of one training, of which this is one.

    Raises:
        ConfigError: torchrun's processes cannot find each other.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._joined_here = False

    @property
    def said(self) -> str:
        """How many there are, for a line of progress; nothing of one."""
        return "" if self.count == 1 else f", {self.count} processes"

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes, evaluates and decides."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Meet the others, over NCCL where the rows are on GPUs, else over gloo."""
        if self.count == 1 or distributed.is_initialized():
            return
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            distributed.init_process_group(backend)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"process {self.rank} of {self.count} cannot join the others ({error}); start the "
                "training by torchrun, which sets MASTER_ADDR and MASTER_PORT"
            ) from error
        self._joined_here = True

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._joined_here:
            distributed.destroy_process_group()

    def own(self, rows: int) -> IntArray:
        """Return the places of this process's rows in a batch of so many, int64 [own]."""
        return np.array_split(np.arange(rows), self.count)[self.rank]

    def gather(self, own: Tensor, rows: int) -> Tensor:
        """Return the rows of all processes in the batch's order: float [rows, d], no gradient.

        Args:
            own: float [own, d], of the places that `own` gives.
            rows: of the whole batch.
        """
        if self.count == 1:
            return own
        shares = [len(part) for part in np.array_split(np.arange(rows), self.count)]
        # All send as much as the first, which has the most.
        sent = own.new_zeros((shares[0], *own.shape[1:]))
        sent[: len(own)] = own
        received = [torch.empty_like(sent) for _ in shares]
        distributed.all_gather(received, sent)
        return torch.cat([part[:share] for part, share in zip(received, shares, strict=True)])

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes in place; one without counts as zeros."""
        if self.count == 1:
            return
        trained = [weight for weight in weights if weight.requires_grad]
        for weight in trained:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        # In one piece: a message's way costs more than its bytes.
        flat = torch.cat([_grad(weight).reshape(-1) for weight in trained])
        distributed.all_reduce(flat)
        sizes = [weight.numel() for weight in trained]
        for weight, part in zip(trained, torch.split(flat, sizes), strict=True):
            _grad(weight).copy_(part.view_as(weight))

    def same_weights(self, *modules: nn.Module) -> None:
        """Give all processes the weights and buffers of the one that leads."""
        if self.count > 1:
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    distributed.broadcast(tensor.data, src=0)

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether any process raised it."""
        if self.count == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int64, device=self._device())
        distributed.all_reduce(raised, distributed.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def _device(self) -> torch.device:
        on_gpu = distributed.get_backend() == "nccl"
        return torch.device("cuda", self.local_rank) if on_gpu else torch.device("cpu")


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the rows of all processes, so that they normalise as one would.

    torch's SyncBatchNorm does the same on GPUs alone. Two messages a layer: the deviations are
    taken from the shared mean, since a difference of large sums would lose them.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise float [rows, channels, height, width]."""
        if not self.training:
            return super().forward(rows)
        over = (0, 2, 3)
        size = rows.new_full((1,), rows.numel() / rows.shape[1])
        sums = _sum(torch.cat([rows.sum(over), size]))
        count = sums[-1].detach()
        mean = (sums[:-1] / count)[:, None, None]
        deviations = rows - mean
        variance = _sum(deviations.square().sum(over)) / count
        with torch.no_grad():
            assert self.momentum is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked.add_(1)
        normalized = deviations * (variance + self.eps).rsqrt()[:, None, None]
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]


def share_batch_norms(twin: nn.Module, processes: Processes) -> None:
    """Let a twin's batch norms see the rows of all processes; its state keeps its names."""
    if processes.count == 1:
        return
    for module in twin.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm


def _sum(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


def _grad(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad
