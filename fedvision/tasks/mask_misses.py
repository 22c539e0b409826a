"""Which classes' pixels a network found worst in which image: measured by Dice, and drawn.

A class goes wrong in an image that has it by 1 - its Dice there (``tasks.pixels``): so a small region weighs
as much as a large one. A class that is predicted where it is not at all is not counted, as one wrong pixel
would have the worst Dice there is; it is seen in the picture.

Shape letters: N or B images, C classes, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedvision.data.masks import IGNORED, palette
from fedvision.formatting import percent
from fedvision.tasks import drawings
from fedvision.tasks.drawings import Drawings

_ABOUT = (
    "Test images in which the class named above them has the lowest Dice, that of the image alone; the "
    "lowest come first."
)


def misses(
    rows: NDArray[np.int64], images: int, classes: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """Return 1 - Dice of each class in each image that has it, float64 [N, C]; 0 elsewhere.

    Args:
        rows: int64 [M, 5], as ``pixels.case_rows`` makes them.
        images: N.
        classes: Those that are looked at.
        num_classes: C.
    """
    wrong = np.zeros((images, num_classes))
    image, label, right, named, true = rows[(rows[:, 4] > 0) & np.isin(rows[:, 1], classes)].T
    wrong[image, label] = 1 - 2 * right / (named + true)
    return wrong


def draw(
    images: NDArray[np.uint8],
    predicted: NDArray[np.int64],
    masks: NDArray[np.uint8],
    of: NDArray[np.int64],
    names: Sequence[str],
) -> Drawings:
    """Return images beside their true and their predicted masks; what is ignored is so in both.

    Args:
        images: uint8 [B, H, W, channels].
        predicted: int64 [B, H, W].
        masks: uint8 [B, H, W].
        of: int64 [B]: the class whose Dice is told of each.
        names: Class names [C].
    """
    shown = np.where(masks == IGNORED, IGNORED, predicted)
    colours = palette(len(names))
    panels = (drawings.photos(images), drawings.maps(masks, colours), drawings.maps(shown, colours))
    there = np.union1d(masks, shown).tolist()
    key = {f"#{bytes(colours[value]).hex()}": names[value] for value in there if value != IGNORED}
    if IGNORED in there:
        key |= {f"#{bytes(colours[IGNORED]).hex()}": "ignored"}
    return Drawings(
        panels=np.stack(panels, axis=1),
        titles=("image", "true mask", "predicted mask"),
        captions=[f"Dice {percent(_dice(*one))}" for one in zip(shown, masks, of, strict=True)],
        about=_ABOUT,
        key=key,
    )


def _dice(predicted: NDArray[np.int64], mask: NDArray[np.uint8], label: int) -> float | None:
    """Return a class's Dice in an image; None where neither mask has it."""
    named, true = predicted == label, mask == label
    either = int(named.sum() + true.sum())
    return 2 * int((named & true).sum()) / either if either else None
