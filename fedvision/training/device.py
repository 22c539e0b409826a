"""Where the arithmetic runs."""

from __future__ import annotations

import torch

from fedvision.errors import ConfigError


def choose(name: str) -> torch.device:
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
