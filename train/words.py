"""Averaged word vectors as a text twin, trained on the spot.

In: a tokenizer made by `vocabulary`, and perhaps word vectors. Out: a twin whose embedding is a
projection of the mean of its tokens' vectors. The order of words is lost, which short questions
bear.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from twinserve.distance import Metric
from twinserve.feed import Rows
from twinserve.manifest import TextInput
from twinserve.train.twins import TextTwin
from twinserve.train.vocabulary import PAD_ID, UNKNOWN_ID, WordVectors


class WordTable(nn.Module):
    """Token ids and mask, int64 [batch, length] -> float32 [batch, length, width]."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Look the tokens' vectors up."""
        vectors: Tensor = self.table(ids)
        return vectors


def words(
    contract: TextInput,
    tokenizer: str,
    *,
    width: int = 256,
    dimension: int = 64,
    metric: Metric = Metric.COSINE,
    normalized: bool = True,
) -> TextTwin:
    """Build the twin with random vectors, and a projection that keeps their angles at first."""
    vocabulary: int = Tokenizer.from_str(tokenizer).get_vocab_size()
    projection = nn.Linear(width, dimension)
    nn.init.orthogonal_(projection.weight)
    nn.init.zeros_(projection.bias)
    return TextTwin(
        WordTable(vocabulary, width),
        contract=contract,
        tokenizer=tokenizer,
        dimension=dimension,
        metric=metric,
        normalized=normalized,
        pooling=("mean",),
        head=projection,
    )


def begin(twin: TextTwin, rows: Rows, vectors: WordVectors | None) -> None:
    """Set the table's vectors before the first step: from a file, and rare words longer.

    Words weigh by the logarithm of their rarity (Spärck Jones, 1972), so that the mean begins as a
    random projection of TF-IDF, and training improves on that.

    Args:
        twin: of `words`.
        rows: token ids of the training part.
        vectors: by word; None begins with random ones.
    """
    encoder = twin.encoder
    assert isinstance(encoder, WordTable)
    weight = encoder.table.weight.detach()
    size, width = weight.shape
    weight.mul_(1.0 / math.sqrt(width))
    if vectors is not None:
        # Brought to the length that random vectors have.
        mean_length = float(np.mean([np.linalg.norm(vector) for vector in vectors.values()]))
        for word, index in Tokenizer.from_str(twin.tokenizer).get_vocab().items():
            if word in vectors:
                weight[index] = torch.from_numpy(vectors[word]) / max(mean_length, 1e-6)
    holding = np.zeros(size)
    for row in rows:
        holding[np.unique(row)] += 1
    rarity = np.log((1 + len(rows)) / (1 + holding)) + 1.0
    # What no text of the training part held tells nothing of its weight, except that it is known.
    rarity[holding == 0] = np.median(rarity[holding > 0]) if (holding > 0).any() else 1.0
    rarity[[PAD_ID, UNKNOWN_ID]] = 0.0
    weight.mul_(torch.from_numpy(rarity.astype(np.float32)).unsqueeze(1))
