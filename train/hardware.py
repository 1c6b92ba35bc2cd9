"""Where a training runs, and in which type it counts.

In: `device` and `precision` of a config. Out: a torch device, the type that the twin's forward pass
may use, and a scaler where gradients of that type would vanish. Weights, losses and the optimizer
stay float32: this is mixed precision (Micikevicius et al., 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from twinserve.errors import ConfigError
from twinserve.train.config import TrainConfig

_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """What a training runs on."""

    device: torch.device
    narrow: torch.dtype | None  # of the twin's forward pass; None: float32 as its weights

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(
            self.device.type, dtype=self.narrow or torch.bfloat16, enabled=self.narrow is not None
        )

    def scaler(self) -> torch.amp.GradScaler:
        """Return what keeps small gradients of float16 from vanishing; of others it does nothing.

        A step whose scaled gradients overflow is left out, and the next is scaled by less.
        """
        return torch.amp.GradScaler(self.device.type, enabled=self.narrow is torch.float16)

    def __str__(self) -> str:
        name = next(name for name, narrow in _TYPES.items() if narrow is self.narrow)
        return f"{self.device}, {name}"


def hardware_of(config: TrainConfig, local_rank: int = 0) -> Hardware:
    """Choose by a config and by what is there.

    `auto` is the GPU where torch sees one, and bfloat16 where that GPU computes in it, else
    float16; on a CPU float32, which is the fastest on most.

    Args:
        config: names device and precision.
        local_rank: of this process among those on its machine; it takes the GPU of that number.

    Raises:
        ConfigError: a GPU that is not there, or a precision that the device does not take.
    """
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError(
            "device is 'cuda', and torch sees no GPU here; set device=cpu, or install the CUDA "
            "build of torch and a driver for it"
        )
    on_gpu = there and config.device != "cpu"
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    precision = config.precision
    if precision == "auto":
        precision = "fp32"
        if on_gpu:
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if precision == "fp16" and not on_gpu:
        raise ConfigError("precision is 'fp16', which is of GPUs; on a CPU set bf16 or fp32")
    return Hardware(device, _TYPES[precision])
