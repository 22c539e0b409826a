"""What a library publishes with its networks: files of weights, and what the images were like in training."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedvision import registry
from fedvision.errors import ConfigError, first_line
from fedvision.families import family_of


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What was done to the images with which a network was trained."""

    mean: tuple[float, ...]
    """Per channel of pixels scaled to 0..1, or one for all."""
    std: tuple[float, ...]
    """Per channel of pixels scaled to 0..1, or one for all."""
    size: int
    """Pixels a side; 0 where unknown."""
    interpolation: str
    """How images were brought to that size: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that a library has for one of its networks."""

    preprocessing: Preprocessing
    """Of their training."""
    locate: Callable[[], Path] | None = None
    """Returns their file on this machine, downloaded where it is missing, or raises ConfigError; None where
    no particular file is meant."""
    digest: str = ""
    """The first digits of the file's SHA-256, hexadecimal; empty where unknown."""


def colours(in_channels: int) -> int:
    """Return the channels of a library's network: its weights are made for colour, as which gray is shown."""
    return 3 if in_channels == 1 else in_channels


def published_of(use: str) -> Mapping[str, Published]:
    """Return the weights that a network's library has for it, by name; "" is what holds for any file.

    Args:
        use: As in ``[model]``.

    Raises:
        PluginError: There is no such network.
    """
    found = family_of("model", use)
    if found is None:
        return {}
    registry.resolve("model", use)
    family, name = found
    published: Mapping[str, Published] = importlib.import_module(family.module).published(name)
    return published


def download(url: str) -> Path:
    """Return the file of a URL in torch's cache, downloaded where it is missing.

    The digest in the file's name (``resnet50-0676ba61.pth``) is compared.

    Raises:
        ConfigError: It cannot be downloaded.
    """
    import torch

    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                url, str(path), hash_prefix=digest_in(name) or None, progress=False
            )
        except Exception as error:
            raise ConfigError(
                f"model.weights: {url} cannot be downloaded ({first_line(error)}); copy it to {path}"
            ) from error
    return path


def digest_in(name: str) -> str:
    """Return the digits of a digest that a file's name has; empty where it has none."""
    found = re.search(r"-([0-9a-f]{8,})\.\w+$", name)
    return found[1] if found else ""
