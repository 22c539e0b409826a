"""A small conditional GAN: a generator of images of a class, and a discriminator that judges them.

The form is that of Radford, Metz, Chintala 2016, "Unsupervised Representation Learning with Deep
Convolutional Generative Adversarial Networks", arXiv 1511.06434, with the class as an input of the generator
(Mirza and Osindero 2014, "Conditional Generative Adversarial Nets", arXiv 1411.1784) and as an inner product
in the discriminator (Miyato and Koyama 2018, "cGANs with Projection Discriminator", arXiv 1802.05637)::

    D(x, y) = a(f(x)) + <e_y, f(x)>        f features of the image, a linear, e_y a vector of the class

Here upsampling is by nearest neighbours before a convolution, and group normalisation takes the place of
batch normalisation: what is averaged over clients has no running statistics, and an image is the same in any
batch.

Images are of any height and width of 4 or more: the generator begins at a quarter of them, rounded up,
doubles twice and cuts off what is over. Values are pixels / 255, in [0, 1].

Shape letters: B batch, C classes, Z noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

_SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class GanShape:
    """What both networks are built of."""

    classes: int
    """C."""
    channels: int
    """Channels of an image."""
    height: int
    """H, >= 4."""
    width: int
    """W, >= 4."""
    noise: int = 32
    """Z."""
    maps: int = 8
    """Feature maps of the layer next to the image; layers further in have two and four times as many."""

    def numbers(self) -> dict[str, float]:
        """Return the fields as a message holds them."""
        return {name: float(value) for name, value in asdict(self).items()}

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> GanShape:
        """Return the shape of ``numbers``; a missing one is a ``KeyError``."""
        return cls(**{name: int(numbers[name]) for name in cls.__dataclass_fields__})


class Generator(nn.Module):
    """Noise [B, Z] and classes int64 [B] -> images [B, channels, H, W], pixels / 255."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__()
        self.shape = shape
        self.start = (-(-shape.height // 4), -(-shape.width // 4))
        maps = shape.maps
        self.embedding = nn.Embedding(shape.classes, shape.noise)
        self.first = nn.Linear(2 * shape.noise, 4 * maps * self.start[0] * self.start[1])
        self.norms = nn.ModuleList(nn.GroupNorm(4, size) for size in (4 * maps, 2 * maps, maps))
        self.middle = nn.Conv2d(4 * maps, 2 * maps, 3, padding=1)
        self.late = nn.Conv2d(2 * maps, maps, 3, padding=1)
        self.last = nn.Conv2d(maps, shape.channels, 3, padding=1)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return images; an image depends on its own noise and class alone."""
        x = self.first(torch.cat([noise, self.embedding(labels)], dim=1))
        x = x.view(len(x), -1, *self.start)
        for norm, convolution in zip(self.norms, (self.middle, self.late, None), strict=True):
            x = F.relu(norm(x))
            if convolution is not None:
                x = convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        image: torch.Tensor = torch.sigmoid(self.last(x))
        return image[:, :, : self.shape.height, : self.shape.width]


class Discriminator(nn.Module):
    """Images [B, channels, H, W], pixels / 255, and classes int64 [B] -> logits [B] of being real."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__()
        maps = shape.maps
        self.first = nn.Conv2d(shape.channels, maps, 4, stride=2, padding=1)
        self.middle = nn.Conv2d(maps, 2 * maps, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 2 * maps)
        size = 2 * maps * (shape.height // 4) * (shape.width // 4)
        self.features = nn.Linear(size, 4 * maps)
        self.judge = nn.Linear(4 * maps, 1)
        self.embedding = nn.Embedding(shape.classes, 4 * maps)
        nn.init.zeros_(self.embedding.weight)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = F.leaky_relu(self.first(2 * images - 1), _SLOPE)
        x = F.leaky_relu(self.norm(self.middle(x)), _SLOPE)
        features = F.leaky_relu(self.features(x.flatten(1)), _SLOPE)
        logits: torch.Tensor = self.judge(features).squeeze(1) + (self.embedding(labels) * features).sum(
            dim=1
        )
        return logits
