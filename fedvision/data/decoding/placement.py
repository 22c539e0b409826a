"""Where the decoder puts the pixels of a file: what moves boxes and masks as it moves the image.

A file's header is enough: its size, its EXIF orientation, and the whole factor by which a JPEG is made
smaller while it is read (``pixels``).
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvision.data.boxes import Placement
from fedvision.data.decoding.decode import Decoding
from fedvision.data.decoding.pixels import FORMATS, ORIENTATION, fitting

Value = TypeVar("Value", bound=np.integer[Any])
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that change width and height for each other."""
_RIGHT_TO_LEFT, _BOTTOM_TO_TOP = (2, 3, 6, 7), (3, 4, 7, 8)
"""EXIF orientations after which x, or y, runs against the axis of the file that it comes from."""
_TEXTS = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
"""Chunks of a PNG that may hold an orientation."""


class Located(NamedTuple):
    """What a file's header says."""

    placement: Placement
    """Of the upright image."""
    turned: bool
    """Whether EXIF changes width and height for each other: tools that do not look at it see another size."""
    oriented: bool
    """Whether EXIF asks for any rotation or mirroring."""


def locate_all(root: Path, names: Sequence[str], how: Decoding) -> list[Located | str]:
    """Return where the decoder puts the pixels of files, or why a header cannot be read.

    Args:
        root: The folder that the names are relative to.
        names: The files.
        how: As they will be decoded.
    """
    with ThreadPoolExecutor(8) as pool, warnings.catch_warnings():
        # What Pillow warns of (odd metadata, large images) it has read nevertheless.
        warnings.simplefilter("ignore")
        return list(pool.map(lambda name: _located(root / name, how), names, chunksize=64))


def _located(path: Path, how: Decoding) -> Located | str:
    try:
        return locate(path, how)
    except Exception as error:  # a broken file can raise almost anything; the decoder says why
        return str(error) or type(error).__name__


def locate(path: Path, how: Decoding) -> Located:
    """Return where the decoder puts the pixels of a file.

    Raises:
        Exception: Whatever Pillow raises on a broken file: there is no common class.
    """
    with Image.open(path, formats=FORMATS) as image:
        sides = [*image.size]
        drafted = image.draft("L" if how.channels == 1 else "RGB", (2 * how.size, 2 * how.size))
        factor = [end / side for end, side in zip(drafted[1][2:], sides, strict=True)] if drafted else [1, 1]
        # Its last row and column reach over the edge of the file where the factor does not divide the side.
        reduced = [*image.size]
        turn = _orientation(image, path)
    if turn in _TURNED:
        sides, factor, reduced = sides[::-1], factor[::-1], reduced[::-1]
    fit = fitting(reduced[0], reduced[1], how.size, how.fit)
    scale, shift = [], []
    for axis, against in enumerate((turn in _RIGHT_TO_LEFT, turn in _BOTTOM_TO_TOP)):
        begins = reduced[axis] - sides[axis] * factor[axis] if against else 0.0
        ratio = fit.size[axis] / (fit.box[axis + 2] - fit.box[axis])
        scale.append(factor[axis] * ratio)
        shift.append((begins - fit.box[axis]) * ratio + fit.corner[axis])
    placement = Placement(
        width=sides[0], height=sides[1], scale=(scale[0], scale[1]), shift=(shift[0], shift[1])
    )
    return Located(placement, turn in _TURNED, turn in _RIGHT_TO_LEFT + _BOTTOM_TO_TOP + _TURNED)


def sample(values: NDArray[Value], place: Placement, size: int, fill: int) -> NDArray[Value]:
    """Return a value for each pixel of the decoded image: that of the file's pixel under its centre.

    Args:
        values: [H, W], of the file's upright image.
        place: Of the same image.
        size: Side of the decoded image.
        fill: Value of pixels that are none of the file's.

    Returns:
        [size, size], of the same type.
    """
    centres = np.arange(size) + 0.5
    column, row = (
        np.floor((centres - shift) / scale).astype(np.int64)
        for shift, scale in zip(place.shift, place.scale, strict=True)
    )
    found: NDArray[Value] = values[np.ix_(row.clip(0, place.height - 1), column.clip(0, place.width - 1))]
    inside = np.outer((row >= 0) & (row < place.height), (column >= 0) & (column < place.width))
    found[~inside] = fill
    return found


def _orientation(image: Image.Image, path: Path) -> int:
    # Pillow decodes a PNG without EXIF in front whole, to look behind the pixels; its chunks say whether to.
    if image.format != "PNG" or "exif" in image.info or _texts_behind(path):
        return int(image.getexif().get(ORIENTATION, 1))
    return int(Image.Image.getexif(image).get(ORIENTATION, 1))


def _texts_behind(path: Path) -> bool:
    """Return whether a PNG has chunks behind its pixels that may say how it is turned."""
    with open(path, "rb") as file:
        file.seek(8)
        pixels = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            pixels = pixels or kind == b"IDAT"
            if pixels and kind in _TEXTS:
                return True
            file.seek(length + 4, 1)
    return False
