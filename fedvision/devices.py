"""The devices that networks run on, and what they can compute."""

from __future__ import annotations

import torch

from fedvision.errors import ConfigError

WITHOUT_FLOAT64 = {"mps"}
"""Kinds of devices that hold no float64: not even for a moment, so that numbers leave them first."""


def choose_device(name: str) -> torch.device:
    """Return the torch device for ``training.device``.

    Args:
        name: ``"auto"`` (cuda, then mps, then cpu) or a torch device such as ``"cuda:1"``.

    Raises:
        ConfigError: There is no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"training.device: {name!r} is not available on this machine; set it to 'auto' or 'cpu'"
        ) from error
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """Return the most precise type of numbers that a device computes with."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def holds(device: torch.device, tensor: torch.Tensor) -> bool:
    """Return whether a tensor's numbers can be on a device as they are."""
    return tensor.dtype is not torch.float64 or widest_float(device) is torch.float64
