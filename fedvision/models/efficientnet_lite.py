"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation and with ReLU6, for small devices.

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946;
the Lite variants are TensorFlow's (``tpu/models/official/efficientnet/lite``). Convolutions pad as its
"SAME": where a stride leaves an odd rest, one pixel more at the right and at the bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.base import Backbone, ImageModel, LibraryNames
from fedvision.models.pretrained import Preprocessing, Published, colours

_BLOCKS = (
    # expansion, kernel, stride, channels out, repeats
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM, _FEATURES = 32, 1280
_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)

_NAMES = LibraryNames(
    head={"_fc.": "head."},
    renamed=(
        (r"^_conv_stem\.", "stem.conv."),
        (r"^_bn0\.", "stem.norm."),
        (r"^_conv_head\.", "last.conv."),
        (r"^_bn1\.", "last.norm."),
        (r"^_blocks\.", "blocks."),
        (r"\._expand_conv\.", ".expand.conv."),
        (r"\._bn0\.", ".expand.norm."),
        (r"\._depthwise_conv\.", ".depthwise.conv."),
        (r"\._bn1\.", ".depthwise.norm."),
        (r"\._project_conv\.", ".project.conv."),
        (r"\._bn2\.", ".project.norm."),
    ),
)
"""The names in the state dict of PyPI's ``efficientnet-lite-pytorch``, and those here."""


def names() -> list[str]:
    """Return the names after ``efficientnet-lite``."""
    return ["0"]


def efficientnet_lite(*, name: str, num_classes: int, in_channels: int, dropout: float = 0.2) -> ImageModel:
    """Build EfficientNet-Lite0 (Tan and Le 2019): 3.4 million parameters in the backbone, 1,280 features.

    Args:
        name: ``"0"``.
        num_classes: C.
        in_channels: Channels of the images; it is built for colour where they are gray.
        dropout: Share of features that training drops.

    Raises:
        ValueError: ``dropout`` is out of range.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be >= 0 and < 1, not {dropout}")
    backbone = EfficientNetLite(colours(in_channels), dropout)
    return ImageModel(backbone, nn.Linear(_FEATURES, num_classes), library=_NAMES)


def published(name: str) -> Mapping[str, Published]:
    """Return under the name "" what every file of weights of this network was trained with."""
    constants = Preprocessing(mean=(127 / 255,), std=(128 / 255,), size=224, interpolation="bicubic")
    return {"": Published(preprocessing=constants)}


class EfficientNetLite(Backbone):
    """Images [B, in_channels, H, W] -> features [B, 1280]."""

    def __init__(self, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.out_features = _FEATURES
        self.stem = ConvNorm(in_channels, _STEM, 3, 2)
        blocks, channels = [], _STEM
        for expansion, kernel, stride, out, repeats in _BLOCKS:
            for number in range(repeats):
                blocks.append(Block(channels, out, kernel, stride if number == 0 else 1, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.last = ConvNorm(channels, _FEATURES, 1, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 1280]."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        features: torch.Tensor = self.dropout(self.last(x).mean((2, 3)))
        return features


class Block(nn.Module):
    """An inverted residual (Sandler et al. 2018, arXiv 1801.04381) [B, inside, h, w] -> [B, out, h', w']."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.expand = ConvNorm(inside, wide, 1, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, out, 1, 1, active=False)
        self.residual = stride == 1 and inside == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, added to its input where both have one shape."""
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return y + x if self.residual else y


class ConvNorm(nn.Module):
    """Convolution with "SAME" padding, batch norm and ReLU6."""

    def __init__(
        self, inside: int, out: int, kernel: int, stride: int, *, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.active = kernel, stride, active
        self.conv = nn.Conv2d(inside, out, kernel, stride, groups=groups, bias=False)
        self.norm = _norm(out)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, out, ceil(h / stride), ceil(w / stride)]."""
        height, width = (_padding(side, self.kernel, self.stride) for side in x.shape[2:])
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.active else x


def _padding(side: int, kernel: int, stride: int) -> int:
    """Return the pixels that TensorFlow's "SAME" adds to a side, both ends together."""
    return max((-(-side // stride) - 1) * stride + kernel - side, 0)
