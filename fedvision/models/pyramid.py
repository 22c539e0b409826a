"""A feature pyramid on the maps of any image network, for detectors and for classes of pixels.

Lin, Dollar, Girshick, He, Hariharan, Belongie 2017, "Feature Pyramid Networks for Object Detection", arXiv
1612.03144, in torchvision's form. Further, coarser maps are made by convolutions of stride 2 on the coarsest,
as RetinaNet's P6 and P7 are (Lin et al. 2017, arXiv 1708.02002).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from fedvision.models.part_config import PartConfig
from fedvision.models.parts import Part, build_part
from fedvision.models.taps import drop_unused, find, outputs, scales, tap
from fedvision.ranges import check_range

_LARGE = 256
"""Shorter side in pixels above which the finest map has a place for 8 x 8 pixels, as FCOS and RetinaNet have
it, and not for 4 x 4."""
_MOST_LEVELS = 5
_GROUP = 8


class Pyramid(NamedTuple):
    """What the backbone makes of a batch of images."""

    maps: tuple[torch.Tensor, ...]
    """[B, channels, h, w], the finest first."""
    size: tuple[int, int]
    """(H, W) of the images."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the norm of layers on a pyramid: group norm (Wu, He 2018, arXiv 1803.08494) of 8 channels.

    Batch norm's statistics would follow each client's own objects. All channels are one group where 8 do not
    divide them.
    """
    return nn.GroupNorm(channels // _GROUP if channels % _GROUP == 0 else 1, channels)


class ScalesExtractor(Part):
    """A network up to the coarsest of its maps that are read: images -> maps, the finest first.

    Args:
        config: What the experiment says of it.
        built: What its factory built.
        gray: Whether gray images are shown to it as colour.
        images: A few images [B, channels, H, W] to find the maps with.
        names: The layers that are read; empty takes the last one of each size.
        least: Pixels a side for which a place of the finest map stands, where they are found.
    """

    def __init__(
        self,
        config: PartConfig,
        built: nn.Module,
        gray: bool,
        images: torch.Tensor,
        names: Sequence[str],
        least: float,
    ) -> None:
        super().__init__(config, built, gray)
        shown = self.shown(images)
        self.layers = (
            find(self.network, shown, names, config.key)
            if names
            else scales(self.network, shown, config.key, least=least)
        )
        tap(self.network, self.layers)
        self.left_out = drop_unused(self.network, self.layers, shown[:1])
        self.network.train()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a map [B, channels, h, w] of each layer."""
        return outputs(self.network, self.layers, self.shown(images))


class PyramidBackbone(nn.Module):
    """Images [B, in_channels, H, W] -> ``Pyramid`` of maps of one width.

    Args:
        extractor: Makes maps.
        channels: Width of the pyramid's maps.
        levels: How many maps it has, at least as many as the extractor makes.
        size: (H, W) of the images.
    """

    fork = "extractor"
    """The part whose maps can be computed once where it is frozen (``models.frozen_front``)."""

    def __init__(self, extractor: ScalesExtractor, channels: int, levels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.extractor, self.size = extractor, size
        self.neck = FeaturePyramidNetwork([layer.channels for layer in extractor.layers], channels)
        further = levels - len(extractor.layers)
        self.further = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(further))
        self.channels, self.levels = channels, levels

    def forward(self, images: torch.Tensor) -> Pyramid:
        """Return the maps."""
        found = OrderedDict((str(place), one) for place, one in enumerate(self.extractor(images)))
        maps = list(self.neck(found).values())
        for layer in self.further:
            maps.append(layer(F.relu(maps[-1])))
        # Behind a cut (``frozen_front``) there are no images, but what was made of them.
        seen = isinstance(self.extractor, ScalesExtractor)
        return Pyramid(tuple(maps), (images.shape[2], images.shape[3]) if seen else self.size)


def build_backbone(
    backbone: str | Mapping[str, Any],
    in_channels: int,
    image_size: tuple[int, int],
    *,
    channels: int,
    levels: int,
    layers: Sequence[str],
) -> PyramidBackbone:
    """Build a detector's backbone.

    Args:
        backbone: A network's name, or its table; see ``parts.build_extractor``.
        in_channels: Channels of the images.
        image_size: (H, W).
        channels: Width of the pyramid.
        levels: Its maps; 0 takes as many as it needs for its coarsest to have about 8 places a side, at most
            five or as many as the network makes.
        layers: Names of the network's layers whose maps it is built on, the finest first; none takes the last
            one of each size.

    Raises:
        ValueError: A number is out of range, or there are fewer levels than layers.
        PluginError, ConfigError: The network cannot be built, or makes no maps.
    """
    check_range(at_least=1, channels=channels)
    check_range(at_least=0, levels=levels)
    least = 4.0 if min(image_size) <= _LARGE else 8.0
    names = [layers] if isinstance(layers, str) else list(layers)
    kind = partial(ScalesExtractor, names=names, least=least)
    extractor = build_part("backbone", backbone, in_channels, image_size, kind)
    made = len(extractor.layers)
    if levels and levels < made:
        raise ValueError(
            f"levels = {levels}, and the backbone makes {made} maps; raise it, or name fewer in layers"
        )
    shortest = min(extractor.layers[-1].grid)
    while not levels and shortest > 8 and made < _MOST_LEVELS:
        made, shortest = made + 1, -(-shortest // 2)
    return PyramidBackbone(extractor, channels, levels or made, image_size)
