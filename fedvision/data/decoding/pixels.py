"""One image file -> uint8 [size, size, channels]: formats, orientation, transparency and fit.

What becomes of a pixel, in this order:

1. Rotation and mirroring that EXIF asks for are done.
2. Pixels whose white is not 255 are scaled to 0..255 (``bit_depth``): 16-bit gray from 0..65535, or from the
   range that the file or the experiment names. 32-bit and floating-point pixels without one are unreadable.
3. Transparency (alpha, a transparent palette entry or colour) is laid over white.
4. Colour is converted: CMYK and palettes to RGB, and to gray, where ``channels`` is 1, by ITU-R 601
   (0.299 R + 0.587 G + 0.114 B).
5. The image is fitted to the square with an antialiasing bilinear filter; with ``"exact"`` it must be one of
   that size, and no filter touches it.

Of an animation or a TIFF with several pages the first image counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvision.data.decoding.bit_depth import Depth, Source, flat, gray, source

FITS = ("crop", "stretch", "pad", "exact")
"""Ways to make a square: cut the longer side, change the aspect, add black bars, or refuse another size."""

# Other formats that Pillow knows run programs (EPS) or are no photographs (icons, fonts).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Fitting(NamedTuple):
    """Which part of an image goes where in the square."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the part that is kept, in pixels of the image."""
    size: tuple[int, int]
    """Width and height of that part in the square."""
    corner: tuple[int, int]
    """Where its upper left corner lies in the square."""


class Picture(NamedTuple):
    """One decoded file."""

    pixels: NDArray[np.uint8]
    """uint8 [size, size, channels]."""
    depth: Depth | None
    """Of a file with more than 8 bits a channel."""


def read(path: str | Path, *, size: int, channels: int, fit: str, white: float = 0.0) -> Picture:
    """Decode one image file.

    Args:
        path: The file; its content, not its suffix, says which format it has.
        size: Side of the square in pixels, > 0.
        channels: 1 (gray) or 3 (RGB).
        fit: One of ``FITS``.
        white: The value that is white; 0 goes by the file. One above 255 is for files of more than 8 bits.

    Raises:
        ValueError: The pixels have no agreed range, or some lie outside it; the size is not the exact one; or
            there are several pictures.
        Exception: Whatever Pillow raises on a broken file: there is no common class.
    """
    with Image.open(path, formats=FORMATS) as image:
        if fit == "exact" and image.size != (size, size):
            raise ValueError("it has {} x {} pixels, not {} x {}".format(*image.size, size, size))
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time; twice the size that is wanted
        # for leaves the filter enough to average over.
        image.draft("L" if channels == 1 else "RGB", (2 * size, 2 * size))
        plain, deep = _upright(image, path, channels, white)
    return Picture(np.asarray(fitted_to(plain, size, fit)).reshape(size, size, channels), deep)


def whole(path: str | Path, *, channels: int, white: float = 0.0) -> tuple[Image.Image, Depth | None]:
    """Decode one image file at its own size: 8-bit gray or colour, upright, and how deep the file was.

    Args:
        path: The file.
        channels: As for ``read``.
        white: As for ``read``.

    Raises:
        Exception: As for ``read``.
    """
    with Image.open(path, formats=FORMATS) as image:
        return _upright(image, path, channels, white)


def _upright(
    image: Image.Image, path: str | Path, channels: int, white: float
) -> tuple[Image.Image, Depth | None]:
    _check_single(image)
    plain, deep = _flat(image, "L" if channels == 1 else "RGB", source(image, path), white)
    turn = _UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    return (plain if turn is None else plain.transpose(turn)), deep


def _check_single(image: Image.Image) -> None:
    """Refuse a file of several pictures of one size: slices or frames, of which one would be taken.

    Pages of other sizes are thumbnails, as is the second picture in a camera's JPEG.

    Raises:
        ValueError: It is one.
    """
    if image.format not in ("TIFF", "GIF", "WEBP", "PNG") or not getattr(image, "is_animated", False):
        return
    size, number = image.size, getattr(image, "n_frames", 2)
    image.seek(1)
    other = image.size
    image.seek(0)
    if other == size:
        raise ValueError(f"it holds {number} pictures of one size, such as slices or frames; save one a file")


def _flat(image: Image.Image, mode: str, declared: Source, white: float) -> tuple[Image.Image, Depth | None]:
    """Return 8-bit gray (``"L"``) or colour (``"RGB"``) without transparency, and how deep the file was."""
    image.load()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        eight, deep = gray(image, declared, white)
        return eight.convert(mode), deep
    if not image.has_transparency_data:
        scaled, deep_colour = flat(image, declared, white)
        return scaled.convert(mode), deep_colour
    # Pillow has no way from premultiplied gray (La) to RGBA but through LA.
    seen = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    scaled, deep_colour = flat(seen, declared, white)
    canvas = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(canvas, scaled).convert(mode), deep_colour


def fitting(width: int, height: int, size: int, fit: str) -> Fitting:
    """Return which part of an image of that size goes where in a square of ``size``, by one of ``FITS``."""
    whole = (0.0, 0.0, float(width), float(height))
    if fit == "exact":
        return Fitting(whole, (width, height), (0, 0))
    if fit == "pad":
        scale = size / max(width, height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        return Fitting(whole, inner, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return Fitting((left, top, left + side, top + side) if fit == "crop" else whole, (size, size), (0, 0))


def fitted_to(
    image: Image.Image, size: int, fit: str, *, nearest: bool = False, fill: int = 0
) -> Image.Image:
    """Return an image as a square: one filter pass over the part that is kept.

    Args:
        image: The image, 8 bits a channel.
        size: Side of the square in pixels.
        fit: One of ``FITS``.
        nearest: Whether a pixel is that in which its centre lies, so that no value is blended.
        fill: What stands in the bars of ``"pad"``.
    """
    if fit == "exact":
        return image
    how = fitting(*image.size, size, fit)
    if nearest:
        part = image.resize(how.size, Image.Resampling.NEAREST, box=how.box)
    else:
        # A gap of 3 shrinks by whole factors first, which no eye can tell from the plain filter.
        part = image.resize(how.size, Image.Resampling.BILINEAR, box=how.box, reducing_gap=3.0)
    if fit != "pad":
        return part
    canvas = Image.new(image.mode, (size, size), fill)
    canvas.paste(part, how.corner)
    return canvas


def upright_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of an image file as ``read`` sees it, before it is fitted; no pixel is decoded.

    Raises:
        Exception: As of ``read``.
    """
    with Image.open(path, formats=FORMATS) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= 5
        width, height = image.size
    return (width, height) if turned else (height, width)
