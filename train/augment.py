"""Augmentation: other drawings of the same character, other wordings of the same question.

In: the rows of a batch. Out: the twin's inputs, of the same kind, since the twin takes in training
what it takes in serving. Pictures get one affine map each, by one grid_sample per batch; texts lose
some of their tokens; vectors stay as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from twinserve.feed import Rows
from twinserve.manifest import ImageInput, InputContract
from twinserve.train.config import TrainConfig
from twinserve.train.data import Batch, take
from twinserve.train.evaluate import tensors
from twinserve.train.pairs import LinkBatch


class Augmented:
    """Batches of a training part as the twin's inputs, each row a little changed.

    Args:
        rows: of the training part.
        contract: of the twin.
        config: gives the limits.
    """

    def __init__(self, rows: Rows, contract: InputContract, config: TrainConfig) -> None:
        self._rows = rows
        self._contract = contract
        self._config = config

    def __call__(self, batch: Batch | LinkBatch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the twin's inputs for a batch; the generator draws the changes."""
        chosen = take(self._rows, batch.items)
        if self._config.twin == "words":  # an encoder has dropout of its own
            chosen = drop_tokens(chosen, self._config.word_dropout, generator)
        inputs = tensors(chosen, self._contract)
        if isinstance(self._contract, ImageInput):
            turns = torch.from_numpy(batch.turns)
            return (augment(inputs[0], turns, self._config, generator),)
        return inputs


def drop_tokens(rows: Rows, share: float, generator: torch.Generator) -> Rows:
    """Leave each token out with probability `share`, but never all of a text."""
    if share == 0.0:
        return rows
    kept = []
    for row in rows:
        draws = torch.rand(len(row), generator=generator).numpy()
        # The luckiest token stays whatever it drew.
        kept.append(row[(draws >= share) | (draws == draws.max())])
    return kept


def augment(
    pixels: Tensor, turns: Tensor, config: TrainConfig, generator: torch.Generator
) -> Tensor:
    """Turn, rotate, scale, shear and shift each picture about its centre.

    Args:
        pixels: uint8 [batch, height, width, channels].
        turns: int64 [batch], quarter turns counter-clockwise.
        config: gives the limits of the uniform draws.
        generator: draws them.

    Returns:
        uint8 [batch, height, width, channels]. What comes in from outside is paper (white) for
        `ink_inverted`, else the nearest pixel of the border.
    """
    count = len(pixels)

    def draw(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2.0 - 1.0) * limit

    angle = turns * (math.pi / 2) + draw(math.radians(config.rotate_degrees))
    zoom = 1.0 + draw(config.scale)
    cosine, sine, shear = angle.cos() / zoom, angle.sin() / zoom, draw(config.shear)
    # Rows map an output place to the input place it is taken from; y points down, sides span 2.
    row_x = torch.stack([cosine, shear * cosine - sine, 2.0 * draw(config.shift)], dim=1)
    row_y = torch.stack([sine, shear * sine + cosine, 2.0 * draw(config.shift)], dim=1)
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32)  # [batch, channels, height, width]
    grid = functional.affine_grid(
        torch.stack([row_x, row_y], dim=1), list(planes.shape), align_corners=False
    )
    if config.ink_inverted:
        ink = functional.grid_sample(255.0 - planes, grid, "bilinear", "zeros", align_corners=False)
        moved = 255.0 - ink
    else:
        moved = functional.grid_sample(planes, grid, "bilinear", "border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
