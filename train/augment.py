"""Augmentation: other drawings of the same character, made from the one at hand.

In: uint8 pixels and quarter turns. Out: uint8 pixels of the same shape, since the twin takes in
training what it takes in serving. One affine map per picture, one grid_sample per batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from twinserve.train.config import TrainConfig


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
