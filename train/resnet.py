"""ResNet-18, 34 and 50 as image twins, with the names that torchvision gives their weights.

The networks of He et al., "Deep Residual Learning for Image Recognition", 2016; in the deeper one
the 3x3 convolution carries the stride (v1.5), as in torchvision, so that its published weights
load. `fc` projects to the embedding instead of 1000 classes. Torchvision itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from twinserve.distance import Metric
from twinserve.errors import ConfigError
from twinserve.manifest import ImageInput
from twinserve.train.twins import ImageTwin

STEMS = ("imagenet", "small")
STAGES = ("layer1", "layer2", "layer3", "layer4")
WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: [batch, inputs, h, w] -> [batch, width, h', w']."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 3, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of x to x."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        summed: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return summed


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, four times as wide at the end."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _convolution(inputs, width, 1, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, outputs, 1, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of x to x."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        summed: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return summed


Block = type[BasicBlock] | type[Bottleneck]
DEPTHS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """float32 [batch, channels, height, width] -> float32 [batch, outputs].

    Args:
        depth: 18, 34 or 50.
        channels: of the pictures.
        outputs: of `fc`.
        stem: "imagenet" begins with a 7x7 convolution of stride 2 and a max pooling of stride 2,
            as torchvision's; "small" with one 3x3 convolution of stride 1 and no pooling, for
            pictures of 28 to 64 pixels (as in He et al. for CIFAR-10), at some 16 times the work.
        cut: the last part that is kept, a stage ("layer3") or a block of one ("layer3.1"); what
            lies behind it is not there, and `fc` projects its features. "" keeps everything.

    Raises:
        ConfigError: a cut that the network does not have.
    """

    def __init__(
        self, depth: int, *, channels: int, outputs: int, stem: str = "imagenet", cut: str = ""
    ) -> None:
        super().__init__()
        block, whole = DEPTHS[depth]
        repeats = _kept(whole, cut, depth)
        small = stem == "small"
        self.conv1 = _convolution(channels, WIDTHS[0], 3 if small else 7, 1 if small else 2)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        inputs = WIDTHS[0]
        for place, count in enumerate(repeats):
            stage = _stage(block, inputs, WIDTHS[place], count, 1 if place == 0 else 2)
            self.add_module(STAGES[place], stage)
            inputs = WIDTHS[place] * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Project the mean over all places of what the last stage sees."""
        projected: Tensor = self.fc(self.features(x))
        return projected

    def features(self, x: Tensor) -> Tensor:
        """Return what `fc` projects: float32 [batch, width of the last stage]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in STAGES:
            if name in self._modules:
                x = self.get_submodule(name)(x)
        averaged: Tensor = self.avgpool(x)
        return averaged.flatten(1)


def cut_off(depth: int, cut: str) -> tuple[str, ...]:
    """Return the names that weights of the whole network have, and those of a cut one lack."""
    with torch.device("meta"):
        whole = ResNet(depth, channels=3, outputs=1).state_dict()
        kept = ResNet(depth, channels=3, outputs=1, cut=cut).state_dict()
    return tuple(name for name in whole if name not in kept)


def resnet(
    depth: int,
    contract: ImageInput,
    *,
    dimension: int = 64,
    stem: str = "imagenet",
    cut: str = "",
    metric: Metric = Metric.COSINE,
    normalized: bool = True,
    ink_inverted: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageTwin:
    """Build a ResNet twin with fresh weights; see `ResNet` for depth, stem and cut."""
    return ImageTwin(
        ResNet(depth, channels=contract.channels, outputs=dimension, stem=stem, cut=cut),
        contract=contract,
        dimension=dimension,
        metric=metric,
        normalized=normalized,
        ink_inverted=ink_inverted,
        mean=mean,
        std=std,
    )


def _kept(repeats: tuple[int, ...], cut: str, depth: int) -> tuple[int, ...]:
    """Return how many blocks of each stage are kept; stages that are cut off are left out."""
    if not cut:
        return repeats
    stage, _, block = cut.partition(".")
    known = dict(zip(STAGES, repeats, strict=True))
    if stage not in known or (block and not (block.isdecimal() and int(block) < known[stage])):
        raise ConfigError(
            f"cut is {cut!r}, which resnet{depth} does not have; give a stage ({', '.join(STAGES)})"
            " or a block of one, counted from 0: "
            + ", ".join(f"{name}.0 to {name}.{count - 1}" for name, count in known.items())
        )
    place = STAGES.index(stage)
    return (*repeats[:place], int(block) + 1 if block else repeats[place])


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    # Batch norm follows everywhere, and subtracts what a bias would add.
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """Return what brings x to the block's shape, or None where it has it."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _stage(block: Block, inputs: int, width: int, repeats: int, stride: int) -> nn.Sequential:
    blocks = [block(inputs, width, stride)]
    blocks += [block(width * block.expansion, width, 1) for _ in range(1, repeats)]
    return nn.Sequential(*blocks)
