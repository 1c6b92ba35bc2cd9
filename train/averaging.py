"""The average of a twin's weights over its last steps, often a better twin than any of them.

In: a twin as it is trained, after every step. Out: a twin of the same form, whose weights are the
exponential moving average of the trained one's (Polyak and Juditsky, "Acceleration of Stochastic
Approximation by Averaging", 1992; Tarvainen and Valpola, "Mean Teachers", 2017). It is the average
that is evaluated, kept and exported; the steps themselves know nothing of it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from twinserve.train.twins import Twin


class WeightAverage:
    """Follows a twin: average <- d average + (1 - d) trained, after each step.

    The decay d rises to its full value as min(decay, (1 + n) / (10 + n)) over n steps, so that the
    random weights of the beginning are soon forgotten. The running statistics of batch norms are
    averaged like weights; what they count is taken over.

    Args:
        twin: as it is trained, on its device.
        decay: 0.999 averages over some thousand steps; 0 averages nothing.
    """

    def __init__(self, twin: Twin, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        # The twin to evaluate and keep: the trained one itself where nothing is averaged.
        self.twin = copy.deepcopy(twin).requires_grad_(False) if decay else twin
        self._trained = twin
        learns = {name for name, weight in twin.named_parameters() if weight.requires_grad}
        learns |= {name for name, buffer in twin.named_buffers() if "running_" in name}
        self._averaged = sorted(learns)
        self._taken_over = [name for name, _ in twin.named_buffers() if name not in learns]

    def update(self) -> None:
        """Take in the weights of one more step."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        average, trained = self.twin.state_dict(), self._trained.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(
                [average[name] for name in self._averaged],
                [trained[name] for name in self._averaged],
                1.0 - decay,
            )
            for name in self._taken_over:
                average[name].copy_(trained[name])

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes back; nothing where nothing is averaged."""
        return {"twin": self.twin.state_dict(), "steps": self.steps} if self.decay else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if self.decay:
            self.twin.load_state_dict(state["twin"])
            self.steps = state["steps"]
