"""Predicted masks as PNG files with a palette, at the size of the images that they belong to."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvision.data.decoding.pixels import upright_size
from fedvision.data.masks import IGNORED, palette
from fedvision.errors import ConfigError

_SIGNS = re.compile(r"[^\w.-]+")


def png(mask: NDArray[np.uint8], num_classes: int) -> bytes:
    """Return a mask uint8 [H, W] as a PNG file whose values are classes and whose palette colours them."""
    image = Image.fromarray(mask)
    image.putpalette(palette(num_classes).tobytes())
    page = io.BytesIO()
    image.save(page, "PNG", optimize=True)
    return page.getvalue()


def unfitted(mask: NDArray[np.uint8], fit: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a square mask as it lies on the image that was fitted to the square; no value is blended.

    Args:
        mask: uint8 [S, S].
        fit: How the image was fitted: one of ``pixels.FITS``.
        size: (H, W) of the image.

    Returns:
        uint8 [H, W]; 255 where ``"crop"`` cut something off, of which nothing is known.
    """
    height, width = size
    side = len(mask)
    if fit == "crop":
        small = min(size)
        inner = _resized(mask, (small, small))
        found = np.full(size, IGNORED, np.uint8)
        top, left = (height - small) // 2, (width - small) // 2
        found[top : top + small, left : left + small] = inner
        return found
    if fit == "pad":
        scale = side / max(size)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (side - rows) // 2, (side - columns) // 2
        mask = mask[top : top + rows, left : left + columns]
    return _resized(mask, size)


def _resized(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = size
    shown = Image.fromarray(np.ascontiguousarray(mask))
    return np.asarray(shown.resize((width, height), Image.Resampling.NEAREST))


def at_image_size(mask: NDArray[np.uint8], name: str, fit: str) -> NDArray[np.uint8]:
    """Return a predicted mask at the size of its image file; as it is where the image is no file."""
    if not os.path.isfile(name):
        return mask
    try:
        size = upright_size(name)
    except Exception:  # it is gone or changed since it was predicted
        return mask
    return mask if size == mask.shape else unfitted(mask, fit, size)


def file_names(names: Sequence[str], out: Path) -> list[Path]:
    """Return where the masks of images go: their names below the folder that all are in, as PNG.

    Raises:
        ConfigError: Two would have one name, or one would overwrite its image.
    """
    files = [name for name in names if os.path.isfile(name)]
    parents = [os.path.dirname(os.path.abspath(name)) for name in files]
    above = os.path.commonpath(parents) if parents else ""
    found = list[Path]()
    for name in names:
        inside = os.path.relpath(os.path.abspath(name), above) if os.path.isfile(name) else ""
        place = (
            Path(inside).with_suffix(".png") if inside else Path(f"{_SIGNS.sub('_', Path(name).name)}.png")
        )
        found.append(out / place)
    seen = dict[Path, str]()
    for name, path in zip(names, found, strict=True):
        if (other := seen.setdefault(path, name)) != name:
            raise ConfigError(
                f"--out {out}: {other} and {name} would both become {path.name}; predict them apart"
            )
        if os.path.abspath(path) == os.path.abspath(name):
            raise ConfigError(f"--out {out}: the mask of {name} would overwrite it; name another folder")
    return found
