"""A small U-Net: logits of every pixel, from coarse features and fine ones beside each other.

Ronneberger, Fischer, Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", arXiv
1505.04597. As there each level has two 3x3 convolutions with ReLU, the way down halves the sides by
max-pooling and doubles the channels, the way up mirrors it and takes the map of the same level beside its
own, and a 1x1 convolution makes the logits. Unlike there convolutions are padded, so that the logits have the
image's size; each has a norm; the way up repeats pixels before a convolution in place of a transposed one,
which leaves patterns (Odena et al. 2016, "Deconvolution and Checkerboard Artifacts", Distill); and
``width`` and ``depth`` are smaller by default.

Group norm (Wu, He 2018, arXiv 1803.08494) is the default, as for ``resnet8``: batch norm's statistics follow
each client's own class mix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.base import ImageModel
from fedvision.models.checks import one_of
from fedvision.models.init import glorot
from fedvision.ranges import check_range

Norm = Callable[[int], nn.Module]
"""Channels -> normalisation layer."""


def unet(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    width: int = 16,
    depth: int = 3,
    norm: str = "group",
    groups: int = 2,
    dropout: float = 0.0,
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> logits [B, C, H, W].

    536,372 parameters for 1 channel and 4 classes. The original has ``width = 64, depth = 4``.

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W), each at least 2^depth; an odd side is rounded up on the way down.
        width: Channels of the first level; each level below has twice as many.
        depth: How often the sides are halved.
        norm: ``"group"`` or ``"batch"``.
        groups: Groups of a group norm; must divide ``width``.
        dropout: Share of the channels of the lowest level that training drops.

    Raises:
        ValueError: A key is out of range, or the images are too small.
    """
    check_range(at_least=1, width=width, depth=depth, groups=groups)
    check_range(at_least=0, below=1, dropout=dropout)
    one_of("norm", norm, ("group", "batch"))
    if norm == "group" and width % groups:
        raise ValueError(f"groups = {groups} does not divide width = {width}; set groups to a divisor of it")
    if min(image_size) < 2**depth:
        height, wide = image_size
        raise ValueError(
            f"depth = {depth} halves images of {height} x {wide} to nothing; set it lower, or take larger "
            "images"
        )
    layer: Norm = partial(nn.GroupNorm, groups) if norm == "group" else nn.BatchNorm2d
    backbone = UNetBackbone(in_channels, width, depth, layer, dropout)
    return ImageModel(backbone, glorot(nn.Conv2d(width, num_classes, 1)))


class UNetBackbone(nn.Module):
    """The network without its head, images [B, in_channels, H, W] -> features [B, width, H, W]."""

    def __init__(self, in_channels: int, width: int, depth: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _twice(inside, out, norm) for inside, out in zip([in_channels, *channels], channels, strict=False)
        )
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.up = nn.ModuleList(_once(2 * out, out, norm) for out in reversed(channels[:-1]))
        self.joined = nn.ModuleList(_twice(2 * out, out, norm) for out in reversed(channels[:-1]))
        self.out_features = width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of each pixel."""
        x: torch.Tensor = images
        levels = list[torch.Tensor]()
        for place, layers in enumerate(self.down):
            x = layers(F.max_pool2d(x, 2, ceil_mode=True) if place else x)
            levels.append(x)
        x = self.dropout(levels.pop())
        for up, joined in zip(self.up, self.joined, strict=True):
            beside = levels.pop()
            larger = F.interpolate(x, scale_factor=2.0, mode="nearest")
            # An odd side was rounded up on the way down.
            x = joined(torch.cat([up(larger[:, :, : beside.shape[2], : beside.shape[3]]), beside], 1))
        return x


def _once(inside: int, out: int, norm: Norm) -> nn.Sequential:
    layer = nn.Conv2d(inside, out, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, norm(out), nn.ReLU())


def _twice(inside: int, out: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*_once(inside, out, norm), *_once(out, out, norm))
