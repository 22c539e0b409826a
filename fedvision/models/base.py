"""The two halves of an image network: ``forward(images) == head(backbone(images))``.

A method that works on features or trains a second head takes the halves by these names. All built-in networks
have them, so their tensors are named ``backbone.*`` and ``head.*``. A network without them trains all the
same; ``halves`` refuses it where they are needed.

Shape letters: B batch, D features, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fedvision.errors import ConfigError
from fedvision.models.init import glorot


class Backbone(nn.Module):
    """A network without its head, images [B, in_channels, H, W] -> features [B, D]."""

    out_features: int
    """D."""


@dataclass(frozen=True, kw_only=True)
class LibraryNames:
    """How the library that a network comes from names its tensors in files of weights."""

    head: Mapping[str, str] = field(default_factory=dict)
    """The prefix of the head there, ``"fc."``, and here; all other tensors are the backbone's."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Regular expressions on names and what takes their place, in this order."""
    training_only: tuple[str, ...] = ()
    """Prefixes of tensors that only training from scratch uses, or that this network cannot use."""
    mark: str = ""
    """A prefix that only the library's names have, where others of them begin with ``backbone.`` as here."""

    def here(self, name: str) -> str | None:
        """Return the name of a library's tensor here, None of one that is not used."""
        if name.startswith(self.training_only):
            return None
        for prefix, own in self.head.items():
            if name.startswith(prefix):
                return own + name.removeprefix(prefix)
        for pattern, text in self.renamed:
            name = re.sub(pattern, text, name)
        return f"backbone.{name}"


class ImageModel(nn.Module):
    """A backbone and a head, images [B, in_channels, H, W] -> logits [B, C].

    Args:
        backbone: Images -> features [B, D]; what drops features before the head is a part of it.
        head: Features -> logits.
        library: How the library that it comes from names its tensors.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, library: LibraryNames | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.library = library

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C]."""
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits


def with_linear_head(backbone: Backbone, num_classes: int) -> ImageModel:
    """Return a backbone with a linear head, Glorot's weights and zero bias at first."""
    return ImageModel(backbone, glorot(nn.Linear(backbone.out_features, num_classes)))


def halves(model: nn.Module, needed_by: str) -> ImageModel:
    """Return a network as one of two halves.

    Args:
        model: The network.
        needed_by: What takes the halves, for the error: ``"[algorithm] use = 'fedrod'"``.

    Raises:
        ConfigError: The network has no halves.
    """
    if isinstance(model, ImageModel):
        return model
    raise ConfigError(
        f"{needed_by} needs a network of backbone and head, and [model] use builds a {type(model).__name__}; "
        "let its factory return fedvision.models.base.ImageModel(backbone, head)"
    )


def feature_rows(features: object, needed_by: str) -> torch.Tensor:
    """Return what a backbone made of images, which must be a row of features an image, [B, D].

    Args:
        features: What it returned.
        needed_by: What takes such rows, for the error.

    Raises:
        ConfigError: It is something else, such as the maps of a detector.
    """
    if isinstance(features, torch.Tensor) and features.dim() == 2:
        return features
    found = list(features.shape[1:]) if isinstance(features, torch.Tensor) else type(features).__name__
    raise ConfigError(
        f"{needed_by} needs a row of features an image, and this backbone makes {found} of it; use another "
        "network, or leave it out"
    )
