"""A class for each pixel of an image: masks uint8 [N, H, W], of which 255 is no class.

255 marks pixels of which nothing is known, such as the edges of PASCAL VOC's objects (Everingham et al. 2010,
"The PASCAL Visual Object Classes (VOC) Challenge"), or what a crop brought in from outside: nobody trains on
them and nobody measures them.

Shape letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import DataError
from fedvision.formatting import plural

IGNORED = 255
"""The value of a pixel without a class."""
MOST_CLASSES = 255
"""More do not fit beside ``IGNORED``."""
_VALUES = 256
_BLOCK = 1 << 22
"""Pixels that are counted at a time: counting makes eight bytes of each."""
_SHADES = 8


def is_masks(targets: NDArray[Any]) -> bool:
    """Return whether targets are masks: uint8 [N, H, W]."""
    return targets.ndim == 3 and targets.dtype == np.uint8


def pixel_counts(masks: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Return the pixels of each class, int64 [C]; those of value 255 are left out.

    Args:
        masks: uint8 [N, H, W].
        num_classes: C.
    """
    found = np.zeros(_VALUES, np.int64)
    for block in _blocks(masks):
        found += np.bincount(block.ravel(), minlength=_VALUES)
    return found[:num_classes]


def image_counts(masks: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Return the images in which each class occurs, int64 [C]."""
    return presence(masks)[:, :num_classes].sum(axis=0, dtype=np.int64)  # type: ignore[no-any-return]


def presence(masks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which values occur in each mask, bool [N, 256]."""
    found = np.zeros((len(masks), _VALUES), np.bool_)
    for number, mask in enumerate(masks):
        found[number] = np.bincount(mask.ravel(), minlength=_VALUES) > 0
    return found


def mask_strata(masks: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number by which each image is spread, int64 [N]: the rarest class that occurs in it.

    Rare is what occurs in few of the images given here, the lowest number of equals; so a rare class is
    spread as one of whole images is, whatever stands around it. An image without any class has the number
    after the highest class.
    """
    there = presence(masks)[:, :IGNORED]
    classes = int(np.flatnonzero(there.any(axis=0)).max(initial=-1)) + 1
    there = there[:, :classes]
    rarest_first = np.argsort(there.sum(axis=0), kind="stable")
    ordered = there[:, rarest_first]
    place = (
        np.where(ordered.any(axis=1), ordered.argmax(axis=1), classes) if classes else np.zeros(len(masks))
    )
    found: NDArray[np.int64] = np.append(rarest_first, classes)[place.astype(np.int64)].astype(np.int64)
    return found


def check_masks(masks: NDArray[np.uint8], num_classes: int, where: str, names: Sequence[str] = ()) -> None:
    """Refuse masks with a value that is neither a class nor 255.

    Args:
        masks: uint8 [N, H, W].
        num_classes: C.
        where: Their place, for the error.
        names: [N] of the images' files; empty where there are none.

    Raises:
        DataError: There is such a value, or there are more classes than fit.
    """
    if num_classes > MOST_CLASSES:
        raise DataError(f"{where}: there are {num_classes} classes, and a mask holds {MOST_CLASSES} at most")
    counts = pixel_counts(masks, _VALUES)
    counts[:num_classes] = counts[IGNORED] = 0
    if not counts.any():
        return
    value = int(np.flatnonzero(counts)[0])
    first = next(number for number, mask in enumerate(masks) if (mask == value).any())
    image = names[first] if len(names) else f"image {first}"
    raise DataError(
        f"{where}: the mask of {image} holds {value}, and {plural(num_classes, 'class', 'es')} have the "
        f"values 0 to {num_classes - 1} (255 is ignored); name all classes, or correct the mask"
    )


def check_sizes(images: NDArray[Any], masks: NDArray[np.uint8], where: str) -> None:
    """Refuse masks [N, H', W'] that are not of the size of their images [N, H, W, channels].

    Raises:
        DataError: They differ.
    """
    if images.shape[1:3] != masks.shape[1:]:
        shown = " and ".join(f"{height} x {width}" for height, width in (images.shape[1:3], masks.shape[1:]))
        raise DataError(f"{where}: images and masks must be of one size, not {shown}; bring both to one")


def palette(num_classes: int) -> NDArray[np.uint8]:
    """Return a colour for each of 256 values, uint8 [256, 3]: black for class 0, white for 255.

    Each further class spreads the bits of its number over the highest bits of red, green and blue, as
    PASCAL VOC's colours do, so that near numbers are far apart; values that are no class are black.

    Args:
        num_classes: C.
    """
    numbers = np.arange(_VALUES)
    colours = np.zeros((_VALUES, 3), np.uint8)
    for bit in range(_SHADES):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> channel) & 1) << (7 - bit)).astype(np.uint8)
        numbers = numbers >> 3
    colours[num_classes:] = 0
    colours[IGNORED] = 255
    return colours


def _blocks(masks: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    size = max(1, _BLOCK // max(1, int(np.prod(masks.shape[1:]))))
    for start in range(0, len(masks), size):
        yield masks[start : start + size]
