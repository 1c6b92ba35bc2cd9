"""Augmentation: other drawings of the same character, other wordings of the same question.

In: the rows of a batch. Out: the twin's inputs, of the same kind, since the twin takes in training
what it takes in serving. Pictures get one affine map each, by one grid_sample per batch, and then
another light; texts lose some of their tokens; vectors stay as they are.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from twinserve.feed import Rows
from twinserve.manifest import ImageInput, InputContract
from twinserve.train.config import TrainConfig
from twinserve.train.data import Batch, IntArray, take
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

    def __call__(
        self,
        batch: Batch | LinkBatch,
        generator: torch.Generator,
        own: IntArray | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the twin's inputs for a batch, or for some of its rows.

        Args:
            batch: to draw the changes for, all of them.
            generator: draws them.
            own: places in the batch, int64 [own], of the rows wanted; None wants all.
        """
        own = np.arange(len(batch.items)) if own is None else own
        if isinstance(self._contract, ImageInput):
            pixels = tensors(take(self._rows, batch.items[own]), self._contract)[0]
            changes = Changes.drawn(torch.from_numpy(batch.turns), self._config, generator)
            return (changes.of(torch.from_numpy(own)).made(pixels, self._config.ink_inverted),)
        chosen = take(self._rows, batch.items)
        if self._config.twin == "words":  # an encoder has dropout of its own
            chosen = drop_tokens(chosen, self._config.word_dropout, generator)
        return tensors(take(chosen, own), self._contract)


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
    return Changes.drawn(turns, config, generator).made(pixels, config.ink_inverted)


@dataclass(frozen=True)
class Changes:
    """What is done to each picture of a batch; None where nothing of the kind is."""

    # Rows map an output place to the input place it is taken from; y points down, sides span 2.
    affine: Tensor  # float32 [batch, 2, 3]
    contrast: Tensor | None  # float32 [batch], factors about the picture's mean
    brightness: Tensor | None  # float32 [batch], added
    # float32 [batch, 2, 2]: start and end of a rectangle along height and width, as shares.
    erased: Tensor | None

    @staticmethod
    def drawn(turns: Tensor, config: TrainConfig, generator: torch.Generator) -> Changes:
        """Draw the changes of a batch; see `augment`."""
        count = len(turns)

        def draw(limit: float) -> Tensor:
            return (torch.rand(count, generator=generator) * 2.0 - 1.0) * limit

        angle = turns * (math.pi / 2) + draw(math.radians(config.rotate_degrees))
        zoom = 1.0 + draw(config.scale)
        cosine, sine, shear = angle.cos() / zoom, angle.sin() / zoom, draw(config.shear)
        row_x = torch.stack([cosine, shear * cosine - sine, 2.0 * draw(config.shift)], dim=1)
        row_y = torch.stack([sine, shear * sine + cosine, 2.0 * draw(config.shift)], dim=1)
        if config.mirror:
            mirrored = torch.rand(count, generator=generator) < config.mirror
            row_x = torch.where(mirrored[:, None], -row_x, row_x)
        contrast = brightness = erased = None
        if config.contrast or config.brightness:
            contrast, brightness = 1.0 + draw(config.contrast), 255.0 * draw(config.brightness)
        if config.erase:
            erased = _rectangles(count, config.erase, generator)
        return Changes(torch.stack([row_x, row_y], dim=1), contrast, brightness, erased)

    def of(self, rows: Tensor) -> Changes:
        """Return the changes of some pictures, by their places: int64 [k]."""
        every = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Changes(*(None if one is None else one[rows] for one in every))  # type: ignore[arg-type]

    def made(self, pixels: Tensor, ink_inverted: bool) -> Tensor:
        """Return the pictures changed: uint8 [batch, height, width, channels] -> the same."""
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32)  # [batch, channels, height, width]
        grid = functional.affine_grid(self.affine, list(planes.shape), align_corners=False)
        if ink_inverted:
            ink = functional.grid_sample(
                255.0 - planes, grid, "bilinear", "zeros", align_corners=False
            )
            moved = 255.0 - ink
        else:
            moved = functional.grid_sample(planes, grid, "bilinear", "border", align_corners=False)
        if self.contrast is not None and self.brightness is not None:
            middle = moved.mean(dim=(1, 2, 3), keepdim=True)
            stretched = (moved - middle) * self.contrast.view_as(middle) + middle
            moved = stretched + self.brightness.view_as(middle)
        if self.erased is not None:
            moved = _erased(moved, self.erased)
        return moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _rectangles(count: int, chance: float, generator: torch.Generator) -> Tensor:
    """Draw a rectangle for each of some pictures, as `Changes.erased`; of others an empty one.

    Random erasing (Zhong et al., 2017), with sides of a tenth to a half of the picture's, so that
    no single place becomes the only one by which a class is known.
    """
    chosen = torch.rand(count, generator=generator) < chance
    spans = []
    for _ in ("height", "width"):
        length = torch.empty(count).uniform_(*ERASED_SIDES, generator=generator)
        start = torch.rand(count, generator=generator) * (1.0 - length)
        spans.append(torch.stack([start, start + length], dim=1))
    return torch.where(chosen[:, None, None], torch.stack(spans, dim=1), torch.zeros(()))


def _erased(planes: Tensor, rectangles: Tensor) -> Tensor:
    """Paint rectangles over with the picture's mean: float32 [batch, channels, height, width]."""
    inside = torch.ones(len(planes), 1, 1, dtype=torch.bool)
    for axis, shape in enumerate(((1, -1, 1), (1, 1, -1))):
        side = planes.shape[2 + axis]
        places = ((torch.arange(side) + 0.5) / side).view(shape)
        start, end = rectangles[:, axis, :1, None], rectangles[:, axis, 1:, None]
        inside = inside & (places >= start) & (places < end)
    mean = planes.mean(dim=(2, 3), keepdim=True)
    return torch.where(inside[:, None], mean, planes)
