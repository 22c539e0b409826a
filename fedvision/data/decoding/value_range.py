"""Files whose pixels use a small part of their type's range: most likely they have fewer bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvision.data.decoding.bit_depth import Depth
from fedvision.errors import DataError

_FULL = 65535
_DARK, _LOOK = 64, 1000
"""Images are dark when no pixel of ``_LOOK`` of them, evenly chosen, reaches ``_DARK`` of 255."""
_FEW = 16
"""Files that use less than 1 / ``_FEW`` of their range keep fewer than 16 of 256 gray levels."""


def narrow_files(deep: Mapping[str, Depth], root: Path) -> tuple[str, ...]:
    """Return notices on files with more than 8 bits a channel.

    Args:
        deep: File name -> its depth.
        root: The folder of the files, for messages.

    Raises:
        DataError: White was assumed to be the type's largest value, and all files together stay below a
            sixteenth of it, so that they would be all but black.
    """
    declared = tuple(_scaled(white, len(files)) for white, files in sorted(_declared(deep).items()))
    guessed = {name: facts for name, facts in deep.items() if facts.assumed}
    if not guessed:
        return declared
    top = max(facts.highest for facts in guessed.values())
    white = max(facts.white for facts in guessed.values())
    # The range of files that are black from edge to edge is unknown.
    few = [name for name, facts in guessed.items() if 0 < facts.highest < facts.white / _FEW]
    if 0 < top < white / _FEW:
        raise DataError(f"{root}: {_sentence(list(guessed), top, white)}")
    if top < white / 2 and top > 0:
        return (*declared, _sentence(list(guessed), top, white))
    if few:
        top = max(guessed[name].highest for name in few)
        return (*declared, f"{_sentence(few, top, white)}; the other {len(guessed) - len(few):,} use it")
    return declared


def dark_images(images: NDArray[np.uint8], remedy: str) -> tuple[str, ...]:
    """Return notices on images that keep to the lowest quarter of 0..255.

    Args:
        images: uint8 [N, H, W, channels]; some are looked at.
        remedy: What to do, for the sentence.
    """
    looked = (images[i] for i in range(0, len(images), max(1, len(images) // _LOOK)))
    # The range of an image of one shade is unknown.
    top = max((int(image.max()) for image in looked if image.min() < image.max()), default=0)
    if not 0 < top < _DARK:
        return ()
    return (f"no pixel is above {top} of 255 in {len(images):,} images; if {top} is white, {remedy}",)


def _declared(deep: Mapping[str, Depth]) -> dict[float, list[str]]:
    found: dict[float, list[str]] = {}
    for name, facts in deep.items():
        if not facts.assumed and facts.white != _FULL:
            found.setdefault(facts.white, []).append(name)
    return found


def _scaled(white: float, files: int) -> str:
    return f"in {files:,} files with more than 8 bits {white:,g} is white, as they or data.range say"


def _sentence(names: Sequence[str], top: float, white: float) -> str:
    bits = max(1, int(top).bit_length())
    return (
        f"{len(names):,} files hold 16 bits a channel, but no pixel of them is above {top:,.0f} of "
        f"{white:,.0f}, such as {names[0]}; set data.range to the value that is white "
        f"({2**bits - 1} for {bits} bits; {white:.0f} keeps them as they are)"
    )
