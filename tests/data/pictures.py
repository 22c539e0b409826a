"""Small image files for the tests of everything that reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def save(path: Path, shade: int = 0, size: int = 4) -> Path:
    """Write one gray image of one shade; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size, size), shade).save(path)
    return path


def spoil(path: Path) -> Path:
    """Write a file that only its suffix calls an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no image at all")
    return path


def shades(images: NDArray[np.uint8]) -> list[int]:
    """Return the shade of each image of one shade."""
    assert np.all(images == images[:, :1, :1, :1])
    return [int(image[0, 0, 0]) for image in images]
