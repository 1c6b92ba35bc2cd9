"""Texts of a batch run beside others of their length, so that little is spent on padding.

In: a padded batch, and what embeds one. Out: the same embeddings in the same order, from several
smaller batches, each padded to its own longest text. Sentences differ so much in length that of a
batch of 64 from STS-b, padded as one, 62 % is padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# So many texts run together at least, and so many tokens for each thread: below that, a call costs
# more than the padding that it saves.
_TEXTS = 16
_TOKENS_PER_THREAD = 128


def by_length(
    run: Callable[[tuple[Tensor, ...]], Tensor], inputs: tuple[Tensor, ...], mask: Tensor
) -> Tensor:
    """Embed a batch in parts, from the longest texts to the shortest.

    Args:
        run: embeds texts that are padded to any one length: int64 [n, length] each -> float
            [n, dimension]. No text may shape the embedding of another.
        inputs: int64 [batch, length] each, padded at the end.
        mask: int64 [batch, length], 1 for tokens that count.

    Returns:
        float [batch, dimension], in the order of the inputs.
    """
    lengths = mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    least = _TOKENS_PER_THREAD * torch.get_num_threads()
    parts, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        chosen = order[start : start + max(_TEXTS, -(-least // longest))]
        parts.append(run(tuple(one[chosen, :longest] for one in inputs)))
        start += len(chosen)
    return torch.cat(parts)[order.argsort()]
