"""What the heads of detectors are made of: towers of convolutions, and layers that predict at each place.

Layers begin as Lin et al. 2017, arXiv 1708.02002, section 4.1, have them: weights of deviation 0.01, and a
bias with which every class has the probability 0.01 everywhere, so that the many places without object do not
swamp the first steps.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from fedvision.models.init import glorot
from fedvision.models.pyramid import group_norm

PRIOR = 0.01
"""The probability of each class at the beginning."""


def small(layer: nn.Conv2d, bias: float = 0.0) -> nn.Conv2d:
    """Give a convolution weights of deviation 0.01 and a bias; return it."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)
    return layer


def prior_bias(probability: float = PRIOR) -> float:
    """Return the logit of a probability."""
    return math.log(probability / (1 - probability))


def tower(channels: int, depth: int) -> nn.Sequential:
    """Return so many 3x3 convolutions with group norm and ReLU, [B, channels, h, w] -> the same shape."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [small(nn.Conv2d(channels, channels, 3, padding=1)), group_norm(channels), nn.ReLU()]
    return nn.Sequential(*layers)


def separable(channels: int, out: int) -> nn.Sequential:
    """Return a depthwise 3x3 convolution with norm and ReLU6, then a 1x1 convolution to ``out`` channels.

    The layers of SSDLite (Sandler et al. 2018, "MobileNetV2", arXiv 1801.04381, section 6.2).
    """
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    last = glorot(nn.Conv2d(channels, out, 1))
    return nn.Sequential(depthwise, group_norm(channels), nn.ReLU6(), last)


def rows(maps: list[torch.Tensor], width: int) -> torch.Tensor:
    """Return maps [B, A width, h, w] as [B, P, width]: place by place, its anchors in their order."""
    return torch.cat([one.permute(0, 2, 3, 1).reshape(len(one), -1, width) for one in maps], 1)
