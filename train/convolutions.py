"""The block that our small convolutional twins are made of."""

from __future__ import annotations

from torch import nn


def block(
    inputs: int, outputs: int, *, size: int = 3, stride: int = 1, pooled: bool = False
) -> list[nn.Module]:
    """Convolution, batch norm and ReLU, with 2x2 max pooling between the last two if `pooled`."""
    return [
        # Batch norm subtracts the mean, so a bias would be lost.
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        # ReLU and max pooling commute; in this order ReLU has a quarter of the work.
        *([nn.MaxPool2d(2)] if pooled else []),
        nn.ReLU(inplace=True),
    ]
