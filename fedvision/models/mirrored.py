"""Features that are the mean of those of an image and of its mirror image.

A class of things seen from either side has the same features from both, where a backbone was trained with
mirrored images but not perfectly. The backbone keeps its class and the names of its tensors: a hook calls it
a second time.

Shape letters: B batch, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def average_with_mirror_image(backbone: nn.Module) -> None:
    """Let a backbone return the mean of its features of images and of their mirror images, from now on."""
    backbone.register_forward_hook(_mean)


def is_mirrored(backbone: nn.Module) -> bool:
    """Return whether a backbone averages with the mirror image, so that each pass calls its layers twice."""
    return _mean in backbone._forward_hooks.values()


def _mean(backbone: nn.Module, args: tuple[Any, ...], features: torch.Tensor) -> torch.Tensor:
    """Return the mean of features [B, D] and of those of the images [B, channels, H, W] mirrored."""
    # ``forward`` itself runs no hook, or this one would call itself.
    mirrored: torch.Tensor = backbone.forward(args[0].flip(-1))
    return (features + mirrored) / 2
