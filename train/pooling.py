"""Pooling: from the states of a text's tokens to one vector, as if its padding were not there.

In: float32 states [batch, length, width] and the mask that says which tokens count. Out: float32
[batch, width] per mode. Texts are padded at the end, and every text has a token at least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Below all that a network gives, and still finite when the graph is brought to fp16.
_LOWEST = -65504.0


def pool(states: Tensor, mask: Tensor, modes: Sequence[str]) -> Tensor:
    """Pool by each mode, and put the vectors side by side.

    Args:
        states: float32 [batch, length, width].
        mask: int64 [batch, length], 1 for tokens that count.
        modes: of `MODES`, as sentence-transformers defines them; one at least.

    Returns:
        float32 [batch, width * modes].
    """
    vectors = [MODES[mode](states, mask) for mode in modes]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    counted = mask.to(states.dtype).unsqueeze(-1)  # [batch, length, 1]
    return (states * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1.0)


def _mean_sqrt_length(states: Tensor, mask: Tensor) -> Tensor:
    counted = mask.to(states.dtype).unsqueeze(-1)
    return (states * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1.0).sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean weighed by the place in the text, from 1 (SGPT: Muennighoff, 2022)."""
    weights = mask.cumsum(dim=1).to(states.dtype) * mask.to(states.dtype)
    weights = weights.unsqueeze(-1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, _LOWEST).amax(dim=1)


def _cls(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, 0]


def _last_token(states: Tensor, mask: Tensor) -> Tensor:
    last = (mask.sum(dim=1) - 1).clamp(min=0)  # [batch]
    index = last.view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1)


MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": _cls,
    "max": _max,
    "lasttoken": _last_token,
    "mean_sqrt_len": _mean_sqrt_length,
    "weightedmean": _weighted_mean,
}
