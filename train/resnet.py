"""ResNet-18, 34 and 50 as image twins, with the names that torchvision gives their weights.

The networks of He et al., "Deep Residual Learning for Image Recognition", 2016; in the deeper one
the 3x3 convolution carries the stride (v1.5), as in torchvision, so that its published weights
load. `fc` projects to the embedding instead of 1000 classes. Torchvision itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from twinserve.distance import Metric
from twinserve.manifest import ImageInput
from twinserve.train.twins import ImageTwin

STEMS = ("imagenet", "small")
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
    """

    def __init__(self, depth: int, *, channels: int, outputs: int, stem: str = "imagenet") -> None:
        super().__init__()
        block, repeats = DEPTHS[depth]
        small = stem == "small"
        self.conv1 = _convolution(channels, WIDTHS[0], 3 if small else 7, 1 if small else 2)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, WIDTHS[0], WIDTHS[0], repeats[0], 1)
        self.layer2 = _stage(block, WIDTHS[0] * block.expansion, WIDTHS[1], repeats[1], 2)
        self.layer3 = _stage(block, WIDTHS[1] * block.expansion, WIDTHS[2], repeats[2], 2)
        self.layer4 = _stage(block, WIDTHS[2] * block.expansion, WIDTHS[3], repeats[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[3] * block.expansion, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Project the mean over all places of what the four stages see."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        projected: Tensor = self.fc(self.avgpool(x).flatten(1))
        return projected


def resnet(
    depth: int,
    contract: ImageInput,
    *,
    dimension: int = 64,
    stem: str = "imagenet",
    metric: Metric = Metric.COSINE,
    normalized: bool = True,
    ink_inverted: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageTwin:
    """Build a ResNet twin with fresh weights; see `ResNet` for depth and stem."""
    return ImageTwin(
        ResNet(depth, channels=contract.channels, outputs=dimension, stem=stem),
        contract=contract,
        dimension=dimension,
        metric=metric,
        normalized=normalized,
        ink_inverted=ink_inverted,
        mean=mean,
        std=std,
    )


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
