"""Image files -> one uint8 array, decoded once by several processes and then read from the cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedvision.data.decoding import pixels
from fedvision.data.decoding.decode_once import decode_once
from fedvision.data.decoding.process_pool import PixelFormat, decode_all
from fedvision.data.decoding.value_range import dark_images, narrow_files
from fedvision.errors import DataError
from fedvision.ranges import check_range

T = TypeVar("T")
_NAMED = 3
"""Files that a notice names before it counts the rest."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The keys that every source of image files shares.

    Raises:
        ValueError: A value is out of range.
    """

    size: int
    """Side of the square images in pixels."""
    channels: int = 3
    """1 for gray, 3 for RGB."""
    fit: str = "crop"
    """``"crop"`` (shorter side to ``size``, then the centre), ``"stretch"``, ``"pad"`` (black bars, which
    masks ignore), or ``"exact"``: files of another size cannot be read."""
    range: float = 0.0
    """The value that is white, such as 1023 for 10 bits in 16-bit files; 0 goes by the file."""
    max_unreadable: float = 0.01
    """Share of files that may be unreadable; they are left out and named."""
    cache: str = ""
    """Folder of decoded images and masks; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded."""
    workers: int = 0
    """Processes that decode; 0 is one per CPU core where that pays."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be the side of the images in pixels, > 0, not {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (gray) or 3 (RGB), not {self.channels}")
        if self.fit not in pixels.FITS:
            raise ValueError(f"fit must be one of {', '.join(pixels.FITS)}, not {self.fit!r}")
        if not (self.range >= 0 and math.isfinite(self.range)):
            raise ValueError(f"range must be the value that is white, > 0, not {self.range}")
        check_range(at_least=0, below=1, max_unreadable=self.max_unreadable)
        check_range(at_least=0, workers=self.workers)


class Decoded(NamedTuple):
    """What became of a list of files."""

    images: NDArray[np.uint8]
    """uint8 [n, size, size, channels]: a read-only memory map."""
    readable: NDArray[np.int64]
    """int64 [n], rising: number in the list of each image."""
    notices: tuple[str, ...]
    """Sentences on files that cannot be read, and on those whose range is not their type's."""


def decode(root: Path, names: Sequence[str], how: Decoding) -> Decoded:
    """Decode files, or find them decoded already.

    Args:
        root: The folder that the names are relative to.
        names: The files, at least one; the result keeps their order.
        how: Size, limits and places.

    Raises:
        DataError: Too many files cannot be read, or the cache cannot be used.
    """
    pixel_format = PixelFormat(how.size, how.channels, how.fit, float(how.range))
    entry = decode_once(
        how.cache,
        root,
        names,
        pixel_format,
        what="image files",
        number=len(names),
        make=lambda: decode_all(root, names, pixel_format, how.workers),
    )
    lost = {names[number]: why for number, why in entry.notes.items()}
    _check_share(root, lost, len(names), how.max_unreadable)
    readable = np.delete(np.arange(len(names)), list(entry.notes))
    narrow = narrow_files({names[number]: facts for number, facts in entry.deep.items()}, root)
    dark = dark_images(entry.images, "set data.range to it") if not (how.range or narrow) else ()
    return Decoded(entry.images, readable, (*_notices(lost, len(names)), *narrow, *dark))


def named(items: Iterable[str]) -> str:
    """Return the first few of some items for a sentence, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - _NAMED:,} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more


def _check_share(root: Path, lost: Mapping[str, str], files: int, limit: float) -> None:
    if len(lost) == files:
        raise DataError(f"{root}: none of {files:,} image files can be read: {_reasons(lost)}")
    if len(lost) > limit * files:
        raise DataError(
            f"{root}: {len(lost):,} of {files:,} image files ({len(lost) / files:.1%}) cannot be read, more "
            f"than max_unreadable = {limit} allows: {_reasons(lost)}; repair or remove them, or raise "
            "max_unreadable"
        )


def _notices(lost: Mapping[str, str], files: int) -> tuple[str, ...]:
    if not lost:
        return ()
    return (f"{len(lost):,} of {files:,} image files cannot be read and are left out: {_reasons(lost)}",)


def _reasons(lost: Mapping[str, str]) -> str:
    return named(f"{name} ({why})" for name, why in lost.items())
