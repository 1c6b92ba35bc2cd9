"""Elastic bending: the same drawing by an unsteadier hand.

In: how many pictures, and how far a place may move. Out: displacements to add to the grid by which
pictures are sampled. A coarse grid of displacements is drawn and interpolated smoothly, as in
Ronneberger et al., "U-Net", 2015, which bends strokes without breaking them; the idea is Simard's
(Simard, Steinkraus and Platt, "Best Practices for Convolutional Neural Networks", 2003).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

# Places along a side that move by themselves: so many that a stroke bends, and does not wriggle.
PLACES = 5


def displacements(
    count: int, height: int, width: int, limit: float, generator: torch.Generator
) -> Tensor:
    """Draw smooth displacements for a batch of pictures.

    Args:
        count: pictures.
        height: pixels.
        width: pixels.
        limit: of the uniform draws at the places of the coarse grid, as a share of the side.
        generator: draws them.

    Returns:
        float32 [count, height, width, 2], x before y, in the unit of `grid_sample`: a side spans 2.
        Between places the cubic interpolation may exceed the limit by a third or so.
    """
    return spread(drawn_places(count, limit, generator), height, width)


def drawn_places(count: int, limit: float, generator: torch.Generator) -> Tensor:
    """Draw what the places of the coarse grid move by: float32 [count, 2, PLACES, PLACES]."""
    drawn = torch.rand(count, 2, PLACES, PLACES, generator=generator) * 2.0 - 1.0
    return drawn * (2.0 * limit)


def spread(places: Tensor, height: int, width: int) -> Tensor:
    """Interpolate what the places move by: -> float32 [count, height, width, 2]."""
    smooth = _interpolation(height) @ places @ _interpolation(width).T
    return smooth.permute(0, 2, 3, 1)


@cache
def _interpolation(side: int) -> Tensor:
    """Return the matrix that brings values at `PLACES` to `side` pixels: [side, PLACES].

    Two products with it cost a tenth of what torch's own interpolation of a batch does.
    """
    each = torch.eye(PLACES).view(1, PLACES, PLACES, 1)
    spread = functional.interpolate(each, (side, 1), mode="bicubic", align_corners=False)
    return spread.view(PLACES, side).T.contiguous()
