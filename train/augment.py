"""Augmentation: other drawings of the same character, other wordings of the same question.

In: the rows of a batch. Out: the twin's inputs, of the same kind, since the twin takes in training
what it takes in serving. Pictures get one affine map each, by one grid_sample per batch, and then
another light; texts lose some of their tokens; vectors stay as they are.
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

# Least and greatest side of an erased rectangle, as shares of the picture's.
ERASED_SIDES = (0.1, 0.5)


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
    """Turn, mirror, rotate, scale, shear and shift each picture, light it anew, hide a part of it.

    What a config does not ask for draws nothing, so that runs of before mirrors were known repeat.

    Args:
        pixels: uint8 [batch, height, width, channels].
        turns: int64 [batch], quarter turns counter-clockwise.
        config: gives the limits of the uniform draws, and the chances of the others.
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
    if config.mirror:
        mirrored = torch.rand(count, generator=generator) < config.mirror
        row_x = torch.where(mirrored[:, None], -row_x, row_x)
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32)  # [batch, channels, height, width]
    grid = functional.affine_grid(
        torch.stack([row_x, row_y], dim=1), list(planes.shape), align_corners=False
    )
    if config.ink_inverted:
        ink = functional.grid_sample(255.0 - planes, grid, "bilinear", "zeros", align_corners=False)
        moved = 255.0 - ink
    else:
        moved = functional.grid_sample(planes, grid, "bilinear", "border", align_corners=False)
    if config.contrast or config.brightness:
        middle = moved.mean(dim=(1, 2, 3), keepdim=True)
        stretch = (1.0 + draw(config.contrast)).view(-1, 1, 1, 1)
        moved = (
            (moved - middle) * stretch + middle + 255.0 * draw(config.brightness).view_as(middle)
        )
    if config.erase:
        moved = _erased(moved, config.erase, generator)
    return moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _erased(planes: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Paint a rectangle of some pictures over with the picture's mean.

    Random erasing (Zhong et al., 2017), with sides of a tenth to a half of the picture's, so that
    no single place becomes the only one by which a class is known.

    Args:
        planes: float32 [batch, channels, height, width].
        chance: of each picture.
        generator: draws which, where and how large.
    """
    count, _, height, width = planes.shape
    chosen = torch.rand(count, generator=generator) < chance
    inside = chosen[:, None, None]
    for side, shape in ((height, (1, -1, 1)), (width, (1, 1, -1))):
        length = torch.empty(count).uniform_(*ERASED_SIDES, generator=generator) * side
        start = torch.rand(count, generator=generator) * (side - length)
        places = torch.arange(side).view(shape) + 0.5
        inside = inside & (places >= start[:, None, None])
        inside = inside & (places < (start + length)[:, None, None])
    mean = planes.mean(dim=(2, 3), keepdim=True)
    return torch.where(inside[:, None], mean, planes)
