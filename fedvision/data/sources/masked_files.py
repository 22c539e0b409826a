"""Image files with a mask file each: masks are brought to the images' size by the same geometry."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fedvision import cores
from fedvision.data.decoding import file_digest
from fedvision.data.decoding.decode import Decoding
from fedvision.data.decoding.decode_once import decode_once
from fedvision.data.decoding.decoder import Outcome
from fedvision.data.decoding.pixels import fitted_to, upright_size
from fedvision.data.decoding.process_pool import Answer, PixelFormat
from fedvision.data.masks import IGNORED
from fedvision.data.sources.mask_code import MaskCode
from fedvision.errors import DataError, first_line

_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
"""Formats that keep values as they are; JPEG does not."""
_WHOLE = ("L", "P", "1", "I", "I;16", "I;16L", "I;16B", "I;16N")
_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
_TOGETHER = 64


def read_masks(
    root: Path, images: Sequence[str], masks: Sequence[str], code: MaskCode, how: Decoding
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the masks of images, uint8 [N, size, size], and which files have a pixel of a class, bool [N].

    A pixel gets the class of the pixel in which its centre lies; the bars of ``fit = "pad"`` are ignored.
    They are read once and then found in the cache, by the masks' contents and the images' sizes.

    Args:
        root: The folder that names are relative to.
        images: [N] image files; one that cannot be read is not compared with its mask.
        masks: [N] files of their masks.
        code: What their values stand for.
        how: How the images are decoded.

    Raises:
        DataError: A mask cannot be read, has another size than its image, or a value that is no class; or
            none has the only size that is wanted.
    """
    entry = decode_once(
        how.cache,
        root,
        (*masks, *images),
        PixelFormat(how.size, 1, how.fit),
        what="masks",
        number=len(masks),
        meaning=("masks", *code.meaning),
        digests=lambda: (*file_digest.contents(root, masks), *_sizes(root, images)),
        make=lambda: _read_all(root, images, masks, code, how),
    )
    found, known = entry.images[..., 0], np.ones(len(masks), bool)
    known[list(entry.notes)] = False
    if how.fit == "exact" and known.any() and all((mask == IGNORED).all() for mask in found):
        raise DataError(
            f'{root}: data.fit = "exact" needs masks of {how.size} x {how.size} pixels, and none is; set '
            "data.size to theirs, or another data.fit"
        )
    return found, known


def _sizes(root: Path, images: Sequence[str]) -> Iterator[bytes]:
    """Yield what of each image a mask depends on."""
    with ThreadPoolExecutor(8) as pool:
        for size in pool.map(_size_of, (root / image for image in images)):
            yield hashlib.sha256(f"{size}".encode()).digest()


def _read_all(
    root: Path, images: Sequence[str], masks: Sequence[str], code: MaskCode, how: Decoding
) -> Iterator[Answer]:
    """Yield masks, a few at a time; one without a pixel of a class has a reason in its place's outcome."""
    with ThreadPoolExecutor(max(1, how.workers or cores.available())) as pool:
        for start in range(0, len(masks), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            read = functools.partial(_read, root, code=code, how=how)
            found = list(pool.map(read, images[part], masks[part]))
            outcomes: list[Outcome] = [None if known else "no pixel of a class" for _, known in found]
            yield outcomes, np.stack([mask for mask, _ in found])[..., None]


def _read(root: Path, image: str, mask: str, code: MaskCode, how: Decoding) -> tuple[NDArray[np.uint8], bool]:
    """Return one mask, uint8 [size, size], and whether its file has a pixel of a class."""
    where = f"{root / mask}"
    try:
        with Image.open(root / mask, formats=_FORMATS) as file:
            values = _values(file, code.coloured)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # a broken file can raise almost anything in almost any decoder
        raise DataError(f"{where}: this mask cannot be read: {_reason(error, mask)}") from error
    try:
        classes = code.decode(values)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    if (wanted := _size_of(root / image)) not in (None, classes.shape):
        assert wanted is not None
        shown, own = (f"{height} x {width}" for height, width in (wanted, classes.shape))
        raise DataError(
            f"{where}: the mask is {own} and its image {image} is {shown} (height x width); save both alike"
        )
    known = bool((classes != IGNORED).any())
    if how.fit == "exact" and classes.shape != (how.size, how.size):
        return np.full((how.size, how.size), IGNORED, np.uint8), known  # its image is left out as unreadable
    fitted = fitted_to(Image.fromarray(classes), how.size, how.fit, nearest=True, fill=IGNORED)
    return np.asarray(fitted), known


def _values(file: Image.Image, coloured: bool) -> NDArray[Any]:
    """Return whole numbers [H, W], or colours [H, W, 3].

    Raises:
        ValueError: The file holds something else.
    """
    if coloured:
        return np.asarray(file.convert("RGB"))
    if file.mode in _WHOLE:
        values = np.asarray(file)
        return values.astype(np.int64) if values.dtype != np.uint8 else values
    if file.mode in ("RGB", "RGBA", "LA"):
        colours = np.asarray(file)[..., : 1 if file.mode == "LA" else 3]
        if (colours == colours[..., :1]).all():  # gray values, saved as a picture
            return colours[..., 0]
        raise ValueError("the mask is a picture of colours; list the colour of each class in data.colours")
    raise ValueError(
        f"the mask has pixels of the kind {file.mode!r}; save whole numbers, as 8-bit gray or palette PNG"
    )


def _size_of(image: Path) -> tuple[int, int] | None:
    try:
        return upright_size(image)
    except Exception:  # told with the other images that cannot be read
        return None


def _reason(error: Exception, mask: str) -> str:
    if isinstance(error, UnidentifiedImageError):
        lossy = mask.lower().endswith(_LOSSY)
        why = "JPEG changes values" if lossy else "it is none of " + ", ".join(_FORMATS)
        return f"{why}; save it as PNG"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; restore access"
    return f"{first_line(error)}; save it again"
