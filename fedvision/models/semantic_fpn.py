"""Classes of pixels on a feature pyramid of any image network: the semantic branch of Panoptic FPN.

Kirillov, Girshick, He, Dollar 2019, "Panoptic Feature Pyramid Networks", arXiv 1901.02446, section 3.1: each
map of the pyramid is brought to the size of the finest by 3x3 convolutions with group norm and ReLU, each
followed by bilinear upsampling by two; the maps are added up, a 1x1 convolution makes logits of them, and
bilinear upsampling brings these to the image's size. The widths are smaller by default, and an odd side is
brought to the very size of the map above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.base import ImageModel
from fedvision.models.init import glorot
from fedvision.models.pyramid import Pyramid, build_backbone, group_norm
from fedvision.ranges import check_range


def semantic_fpn(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    backbone: str | Mapping[str, Any] = "resnet8",
    layers: Sequence[str] = (),
    channels: int = 64,
    width: int = 32,
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> logits [B, C, H, W].

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        backbone: Any network of images by its name or as a table ``{ use, weights, train }``.
        layers: Names of the backbone's layers whose maps are read, the finest first; left out, the last one
            of each size.
        channels: Width of the pyramid.
        width: Channels of the maps that are added up.

    Raises:
        ValueError: A key is out of range.
        ConfigError: The backbone cannot be built.
    """
    check_range(at_least=1, width=width)
    found = build_backbone(backbone, in_channels, image_size, channels=channels, levels=0, layers=layers)
    return ImageModel(found, SemanticHead(channels, width, found.levels, num_classes))


class SemanticHead(nn.Module):
    """``Pyramid`` -> logits [B, C, H, W].

    Args:
        channels: Of the pyramid's maps.
        width: Of the maps that are added up.
        levels: Maps of the pyramid.
        num_classes: C.
    """

    def __init__(self, channels: int, width: int, levels: int, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(_layer(channels if step == 0 else width, width) for step in range(max(1, level)))
            for level in range(levels)
        )
        self.logits = glorot(nn.Conv2d(width, num_classes, 1))

    def forward(self, pyramid: Pyramid) -> torch.Tensor:
        """Return the logits of each pixel of the images."""
        total: torch.Tensor | None = None
        for level, (x, branch) in enumerate(zip(pyramid.maps, self.branches, strict=True)):
            assert isinstance(branch, nn.ModuleList)
            for step, layer in enumerate(branch):
                x = layer(x)
                if level:
                    x = _resized(x, pyramid.maps[level - step - 1].shape[2:])
            total = x if total is None else total + x
        assert total is not None
        return _resized(self.logits(total), pyramid.size)


def _layer(inside: int, out: int) -> nn.Sequential:
    convolution = glorot(nn.Conv2d(inside, out, 3, padding=1, bias=False))
    return nn.Sequential(convolution, group_norm(out), nn.ReLU())


def _resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
