"""Networks in double precision, for tests that compare two ways to the same numbers.

In float32 the last bit of a sum can move an activation over the kink of a ReLU, or change which pixel a
pooling takes, and with it the fourth digit of an update: on which processors that happens is chance. In
float64 it is a billion times rarer, and two ways that are meant to agree do so to eight digits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from fedvision import registry
from fedvision.config import ExperimentConfig

M = TypeVar("M", bound=nn.Module)


def in_double(network: M) -> M:
    """Make a network's parameters and what it computes of images float64."""
    # Some algorithms ask the backbone alone.
    getattr(network.double(), "backbone", network).register_forward_pre_hook(_as_double)
    return network


def double(
    *, of: str, num_classes: int, in_channels: int, image_size: tuple[int, int], **keys: Any
) -> nn.Module:
    """Build a network by its name in an experiment, in double precision.

    Args:
        of: Its name.
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        keys: Its own.
    """
    build = registry.resolve("model", of).call
    network: nn.Module = build(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, **keys
    )
    return in_double(network)


def doubled(config: ExperimentConfig) -> ExperimentConfig:
    """Return an experiment with its network in double precision."""
    model = config.model
    return replace(
        config, model=replace(model, use=f"{__name__}:double", args={"of": model.use, **model.args})
    )


def _as_double(network: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(argument.double() for argument in arguments)
