"""The value that is white in an image file, by its bit depth, its tags and the experiment.

A file with more than 8 bits often holds fewer: a camera of 10 bits writes 0..1023 into 16. Taken for 0..65535
such an image has four gray levels. The value of white is, in this order:

1. The experiment's ``range``.
2. Fewer bits that the file declares: a PNG's sBIT chunk where the pixels were not scaled to the full depth as
   the PNG specification (third edition, 11.3.2.7) asks; a TIFF's BitsPerSample; a TIFF's MaxSampleValue or
   SMaxSampleValue of the form 2**k - 1 that no pixel exceeds. Another maximum there is a mere statistic of
   one image (TIFF 6.0, page 37).
3. The largest value of an unsigned type of up to 16 bits.

Signed, 32-bit and floating-point pixels have no agreed range: without 1 or 2 they are refused.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT, _S_MAX_SAMPLE = 258, 262, 281, 339, 341
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_FULL = 65535
_REMEDY = "say which value is white with data.range, or save it with 8 or 16 bits"


class Depth(NamedTuple):
    """What is known of a file with more than 8 bits a channel."""

    white: float
    """The value that became 255."""
    highest: float
    """The highest value in the file."""
    assumed: bool
    """Whether white is merely the type's largest value: nobody declared another."""


class Source(NamedTuple):
    """What a file declares of its pixels; Pillow forgets some of it when it decodes them."""

    bits: int
    """Bits a channel."""
    significant: int
    """Bits that a PNG's sBIT chunk names, else 0."""
    tagged: float
    """White by a TIFF's tags, else 0."""
    unsigned: bool
    """Whether the type is an unsigned whole number."""
    inverted: bool
    """Whether a TIFF's 0 is white, and Pillow does not turn it."""
    scale: float
    """What Pillow multiplied the values by: a PGM's are brought to 0..65535."""


def source(image: Image.Image, path: str | Path) -> Source:
    """Read what a file declares, before its pixels are decoded."""
    bits, significant, tagged, unsigned, inverted, scale = 8, 0, 0.0, True, False, 1.0
    if image.format == "PNG":
        bits, significant = _png(path)
    elif image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        bits = int(max(_tuple(tags.get(_BITS_PER_SAMPLE, 8))))
        unsigned = set(_tuple(tags.get(_SAMPLE_FORMAT, _UNSIGNED))) == {_UNSIGNED} and bits <= 16
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and image.mode not in ("1", "L")
        highest = [max(_tuple(tags[tag])) for tag in (_S_MAX_SAMPLE, _MAX_SAMPLE) if tag in tags]
        tagged = next((float(one) for one in highest if _is_depth(one)), 0.0)
    elif image.format == "PPM":
        # The decoder's last argument is the range that the header names; the full one needs no decoder.
        how = image.tile[0].args if isinstance(image, ImageFile.ImageFile) else None
        top = how[-1] if isinstance(how, tuple) else 0
        bits = 16 if image.mode == "I" or (isinstance(top, int) and top > 255) else 8
        scale = _FULL / top if image.mode == "I" and top else 1.0
    return Source(bits, significant, tagged, unsigned, inverted, scale)


def gray(image: Image.Image, declared: Source, white: float) -> tuple[Image.Image, Depth]:
    """Bring gray of more than 8 bits to 0..255, rounded; Pillow's own conversion cuts off what is above 255.

    Args:
        image: Mode ``I;16``, ``I`` or ``F``, decoded.
        declared: Of the same file.
        white: The experiment's ``range``; 0 goes by the file.

    Raises:
        ValueError: The pixels have no agreed range, or some lie outside it.
    """
    values = np.asarray(image).astype(np.float64)
    if declared.scale != 1:
        values = np.rint(values / declared.scale)
    if not np.isfinite(values).all():
        raise ValueError("some pixels are no numbers")
    low, high = float(values.min()), float(values.max())
    top, assumed = (white, False) if white else _white(values, declared, high, image.mode)
    if low < 0 or high > top:
        raise ValueError(f"its pixels go from {low:g} to {high:g}, outside 0 to {top:g}; {_REMEDY}")
    if "transparency" in image.info and isinstance(image.info["transparency"], int):
        values = np.where(values == image.info["transparency"], top, values)
    if declared.inverted:
        values = top - values
    return Image.fromarray(np.floor(values * (255 / top) + 0.5).astype(np.uint8)), Depth(top, high, assumed)


def flat(image: Image.Image, declared: Source, white: float) -> tuple[Image.Image, Depth | None]:
    """Bring 8-bit pixels to 0..255 where their white is lower, and say how deep the colour of a file was.

    Of colour with 16 bits a channel Pillow keeps the upper 8, so it cannot be brought to another range.

    Raises:
        ValueError: Colour of 16 bits is not of full range, or some pixels are above white.
    """
    if declared.bits > 8:
        return image, _deep_colour(image, declared, white)
    wanted = white if 0 < white <= 255 else 0.0
    if image.mode == "1" or not (wanted or declared.tagged or declared.significant):
        return image, None
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        if not wanted:
            return image, None
        image = image.convert("RGB")
    bands, high = image.split(), _highest(image)
    top = wanted or _shallow(image, declared, high)
    if high > top:
        raise ValueError(f"a pixel is {high:g}, above range = {top:g}; correct data.range")
    table = [min(255, int(value * 255 / top + 0.5)) for value in range(256)]
    scaled = [
        band if name == "A" else band.point(table) for name, band in zip(image.mode, bands, strict=True)
    ]
    return Image.merge(image.mode, scaled), None


def _deep_colour(image: Image.Image, declared: Source, white: float) -> Depth:
    high = _highest(image) * 256
    known = white or declared.tagged
    if not known and declared.significant < declared.bits and 0 < high < 2**declared.significant:
        known = 2**declared.significant - 1
    if known not in (0, _FULL):
        raise ValueError(f"colour of 16 bits cannot be brought from 0..{known:g}; save it with 8 bits")
    return Depth(_FULL, high + 255 if high else 0, not known)


def _highest(image: Image.Image) -> float:
    """Return the highest value of all channels but alpha."""
    bands = image.split()
    colours = bands[:-1] if image.mode.lower().endswith("a") else bands
    return max(float(np.asarray(band).max()) for band in colours)


def _white(values: NDArray[np.float64], declared: Source, high: float, mode: str) -> tuple[float, bool]:
    """Return the value of white by the file, and whether it is only assumed."""
    if declared.tagged >= high and declared.tagged and mode != "F":
        return declared.tagged, False
    if mode == "F" or not declared.unsigned or declared.bits > 16:
        kind = "floating-point" if mode == "F" else "signed or 32-bit"
        raise ValueError(f"{kind} pixels have no agreed range; {_REMEDY}")
    if 0 < declared.significant < declared.bits and _unscaled(values, declared, high):
        return float(2**declared.significant - 1), False
    if declared.scale != 1:
        return float(np.rint(_FULL / declared.scale)), False
    return float(2**declared.bits - 1), declared.bits == 16


def _shallow(image: Image.Image, declared: Source, high: float) -> float:
    """Return the value of white of 8-bit pixels by the file."""
    if high <= declared.tagged < 255:
        return declared.tagged
    if not 0 < declared.significant < declared.bits == 8:
        return 255
    colours = np.asarray(image.convert("L" if image.mode in ("L", "LA") else "RGB")).astype(np.float64)
    return 2**declared.significant - 1 if _unscaled(colours, declared, high) else 255


def _unscaled(values: NDArray[np.float64], declared: Source, high: float) -> bool:
    """Return whether pixels of fewer significant bits stand in the lower bits of a PNG, as they came.

    The specification wants them shifted up, the lower bits zero or a repetition of the upper ones.
    """
    spare = declared.bits - declared.significant
    if high > 2**declared.significant - 1:
        return False
    whole = values.astype(np.int64)
    upper = whole >> spare
    repeated = upper * ((2**declared.bits - 1) / (2**declared.significant - 1))
    # Where pixels stay this low, a plain shift is the repetition rounded down.
    scaled = (whole == np.rint(repeated)) | (whole == np.floor(repeated))
    return not bool(np.all(scaled))


def _png(path: str | Path) -> tuple[int, int]:
    """Return a PNG's bits a channel and those that sBIT calls significant (0: not said)."""
    with open(path, "rb") as file:
        file.seek(8)
        bits = 8
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"IDAT", b"PLTE", b"IEND"):
                break
            if kind == b"IHDR":
                bits = file.read(length)[8]
            elif kind == b"sBIT" and length <= 4:
                return bits, max(file.read(length), default=0)
            else:
                file.seek(length, 1)
            file.seek(4, 1)
    return bits, 0


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _is_depth(value: Any) -> bool:
    number = float(value)
    return 3 <= number < 2**31 and number.is_integer() and (int(number) + 1).bit_count() == 1
