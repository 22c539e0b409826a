"""A small convolutional network, that of the TensorFlow tutorial (tensorflow.org/tutorials/images/cnn).

::

    conv 32 - pool - conv 64 - pool - conv 64 - flatten - dense 64 - dense C      (3x3, no padding, ReLU)

122,570 parameters for 32x32x3 and 10 classes. Max-pooling comes before the ReLU, which is the same function
(both are monotone) in less time. An image with a side below 18 pixels is padded by one pixel before each
convolution, as it would otherwise vanish.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.base import Backbone, with_linear_head
from fedvision.models.init import glorot
from fedvision.models.mkldnn_layout import blocked, plain
from fedvision.models.tokens import Features
from fedvision.ranges import check_range

_SMALLEST_UNPADDED = 18
_SMALLEST = 4


def cnn(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    width: int = 32,
    dense: int = 64,
    dropout: float = 0.0,
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> logits [B, C].

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W), each at least 4; the dense layer grows with it, so pick a ResNet above 64.
        width: Channels of the first convolution; the other two have twice as many.
        dense: Units of the layer before the head.
        dropout: Share of those units that training drops.

    Raises:
        ValueError: A key is out of range or the image is too small.
    """
    check_range(at_least=1, dense=dense)
    check_range(at_least=0, below=1, dropout=dropout)
    features = ConvFeatures(in_channels, image_size, width)
    return with_linear_head(CnnBackbone(features, dense, dropout), num_classes)


class ConvFeatures(Features):
    """The three convolutions, images [B, in_channels, H, W] -> feature map [B, 2 width, h, w]."""

    def __init__(self, in_channels: int, image_size: tuple[int, int], width: int) -> None:
        super().__init__()
        check_range(at_least=1, width=width)
        if min(image_size) < _SMALLEST:
            height, wide = image_size
            raise ValueError(f"images must be at least {_SMALLEST} x {_SMALLEST}, not {height} x {wide}")
        padding = 1 if min(image_size) < _SMALLEST_UNPADDED else 0
        self.conv1 = glorot(nn.Conv2d(in_channels, width, 3, padding=padding))
        self.conv2 = glorot(nn.Conv2d(width, 2 * width, 3, padding=padding))
        self.conv3 = glorot(nn.Conv2d(2 * width, 2 * width, 3, padding=padding))
        self.channels = 2 * width
        self.grid = (_side(image_size[0], padding), _side(image_size[1], padding))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the feature map."""
        x = F.relu(F.max_pool2d(self.conv1(blocked(images)), 2, 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2, 2))
        return plain(F.relu(self.conv3(x)))


class CnnBackbone(Backbone):
    """The convolutions with a dense layer."""

    def __init__(self, features: ConvFeatures, dense: int, dropout: float) -> None:
        super().__init__()
        height, width = features.grid
        self.features = features
        self.dense = glorot(nn.Linear(features.channels * height * width, dense))
        self.dropout = nn.Dropout(dropout)
        self.out_features = dense

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, dense]."""
        x: torch.Tensor = self.dropout(F.relu(self.dense(self.features(images).flatten(1))))
        return x


def _side(pixels: int, padding: int) -> int:
    """Return a side of the feature map: three convolutions, the first two with pooling."""
    lost = 2 - 2 * padding
    return ((pixels - lost) // 2 - lost) // 2 - lost
