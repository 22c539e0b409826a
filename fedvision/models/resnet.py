"""Residual networks for small images (He et al. 2016, arXiv 1512.03385, section 4.2).

The stem is one 3x3 convolution of stride 1 without pooling. ``resnet8`` and ``resnet20`` have 6n + 2 layers
with n = 1 and 3 blocks in each of three stages; ``resnet18`` is the paper's ImageNet network with this stem.
Where a stage changes the shape, the shortcut is a 1x1 convolution with norm (the paper's option B) in all
three. The paper's CIFAR networks have no weights there: ``resnet20`` has 272,474 parameters, theirs 269,722.

Group norm (Wu & He 2018, arXiv 1803.08494) is the default: batch norm's statistics follow each client's own
class mix, and training fails where these differ much (Hsieh et al. 2020, arXiv 1910.00189). Two groups are
the choice of Reddi et al. 2021, arXiv 2003.00295. Under milder skew batch norm may win (Zhong et al. 2023,
arXiv 2303.06530).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.base import Backbone, with_linear_head
from fedvision.models.checks import one_of
from fedvision.models.tokens import Features
from fedvision.ranges import check_range

Norm = Callable[[int], nn.Module]
"""Channels -> normalisation layer."""


class Shape(NamedTuple):
    """How the named networks differ."""

    blocks: tuple[int, ...]
    """Blocks of each stage."""
    width: int
    """Channels of the first stage, unless set otherwise."""


SHAPES: Mapping[str, Shape] = {
    "resnet8": Shape((1, 1, 1), 16),
    "resnet18": Shape((2, 2, 2, 2), 64),
    "resnet20": Shape((3, 3, 3), 16),
}


def resnet8(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    norm: str = "group",
    groups: int = 2,
    width: int = 16,
) -> nn.Module:
    """Build 3 stages of 1 block: 78,042 parameters for 3 channels and 10 classes. Keys as ``resnet18``."""
    blocks = SHAPES["resnet8"].blocks
    return with_linear_head(
        ResNetBackbone(residual_features(blocks, in_channels, image_size, width, norm, groups)), num_classes
    )


def resnet8_wide(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    norm: str = "batch",
    groups: int = 2,
    width: int = 64,
) -> nn.Module:
    """Build ``resnet8`` four times as wide and with batch norm, as papers on federated long tails have it.

    1,227,594 parameters for 3 channels and 10 classes; CReFF (Shang et al. 2022, arXiv 2204.13399) and those
    that compare with it call it ResNet-8. Keys as ``resnet18``.
    """
    blocks = SHAPES["resnet8"].blocks
    return with_linear_head(
        ResNetBackbone(residual_features(blocks, in_channels, image_size, width, norm, groups)), num_classes
    )


def resnet20(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    norm: str = "group",
    groups: int = 2,
    width: int = 16,
) -> nn.Module:
    """Build 3 stages of 3 blocks: 272,474 parameters for 3 channels and 10 classes. Keys as ``resnet18``."""
    blocks = SHAPES["resnet20"].blocks
    return with_linear_head(
        ResNetBackbone(residual_features(blocks, in_channels, image_size, width, norm, groups)), num_classes
    )


def resnet18(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    norm: str = "group",
    groups: int = 2,
    width: int = 64,
) -> nn.Module:
    """Build 4 stages of 2 blocks: 11,173,962 parameters for 3 channels and 10 classes.

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W); any, as the feature map is averaged.
        norm: ``"group"`` or ``"batch"``.
        groups: Groups of a group norm; must divide ``width``.
        width: Channels of the first stage; each further stage has twice as many.

    Raises:
        ValueError: A key is out of range.
    """
    blocks = SHAPES["resnet18"].blocks
    return with_linear_head(
        ResNetBackbone(residual_features(blocks, in_channels, image_size, width, norm, groups)), num_classes
    )


def residual_features(
    blocks: Sequence[int],
    in_channels: int,
    image_size: tuple[int, int],
    width: int,
    norm: str = "group",
    groups: int = 2,
) -> ResidualFeatures:
    """Build the network without its head; ``blocks`` counts each stage's blocks, the rest as ``resnet18``.

    Raises:
        ValueError: A key is out of range.
    """
    check_range(at_least=1, groups=groups, width=width)
    one_of("norm", norm, ("group", "batch"))
    if norm == "group" and width % groups:
        raise ValueError(f"groups = {groups} does not divide width = {width}; set groups to a divisor of it")
    layer: Norm = partial(nn.GroupNorm, groups) if norm == "group" else nn.BatchNorm2d
    return ResidualFeatures(in_channels, image_size, blocks, layer, width)


class ResidualFeatures(Features):
    """Stem and stages, images [B, in_channels, H, W] -> feature map [B, channels, h, w]."""

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], blocks: Sequence[int], norm: Norm, width: int
    ) -> None:
        super().__init__()
        self.stem = _convolution(in_channels, width)
        self.norm = norm(width)
        self.stages = nn.Sequential()
        channels, (height, wide) = width, image_size
        for stage, count in enumerate(blocks):
            stride = 1 if stage == 0 else 2
            out = width * 2**stage
            first = Block(channels, out, stride, norm)
            self.stages.append(nn.Sequential(first, *(Block(out, out, 1, norm) for _ in range(count - 1))))
            channels, height, wide = out, -(-height // stride), -(-wide // stride)
        self.channels, self.grid = channels, (height, wide)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the feature map."""
        x: torch.Tensor = self.stages(F.relu(self.norm(self.stem(images))))
        return x


class Block(nn.Module):
    """Two 3x3 convolutions with norm beside a shortcut, ``relu(f(x) + shortcut(x))``."""

    def __init__(self, channels: int, out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(channels, out, stride=stride), norm(out)
        self.conv2, self.norm2 = _convolution(out, out), norm(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(_convolution(channels, out, size=1, stride=stride), norm(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map [B, out, h / stride, w / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNetBackbone(Backbone):
    """Features averaged over positions."""

    def __init__(self, features: ResidualFeatures) -> None:
        super().__init__()
        self.features = features
        self.out_features = features.channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, channels]."""
        pooled: torch.Tensor = self.features(images).mean((2, 3))
        return pooled


def _convolution(channels: int, out: int, *, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias (the norm after it has one), initialised as He et al. 2015 do."""
    layer = nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
