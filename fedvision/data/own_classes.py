"""Which classes targets of any form hold, and the same targets under other numbers.

Of boxes a class without a number is dropped, and its images stay: to the experiment such an object is
background. Of classes of pixels one without a number is ignored: what those pixels show is known to be none
of the others, and a client that means background maps the class to it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvision.data import targets as known_forms
from fedvision.data.boxes import CLASS, COLUMNS, COUNT, Boxes, are_boxes, present
from fedvision.data.masks import image_counts, is_masks
from fedvision.data.targets import Targets


def holds_boxes(targets: Targets) -> bool:
    """Return whether targets are boxes: a map of pixels may be 7 wide as well, and holds whole numbers."""
    return targets.dtype.kind == "f" and are_boxes(targets)


def in_words(targets: Targets) -> str:
    """Return what is known of each image, to follow "images have"."""
    if holds_boxes(targets):
        return "boxes"
    if is_masks(targets):
        return "a class for each pixel"
    if targets.ndim > 2:
        return known_forms.form(targets)
    return "any number of labels" if known_forms.several(targets) else "one class each"


def images_with(targets: Targets, num_classes: int) -> NDArray[np.int64]:
    """Return how many images each class has, or shows, int64 [C]; crowds count as their class.

    Raises:
        DataError: The targets are of another form, of which a task alone knows what to count.
    """
    if holds_boxes(targets):
        image, place = np.nonzero(present(targets))
        shown = np.zeros((len(targets), num_classes), np.bool_)
        shown[image, targets[image, place + 1, CLASS].astype(np.int64)] = True
        return shown.sum(axis=0, dtype=np.int64)  # type: ignore[no-any-return]
    if is_masks(targets):
        return image_counts(targets, num_classes)
    return known_forms.count(targets, num_classes)


def renumbered(targets: Targets, table: NDArray[np.int64], num_classes: int) -> Targets:
    """Return targets of any form under other numbers; as ``targets.renumbered`` where that knows them.

    Args:
        targets: [N, ...] of C' classes.
        table: int64 [C']: the new number of each, negative where there is none.
        num_classes: C.
    """
    if holds_boxes(targets):
        return _boxes(targets, table)
    return known_forms.renumbered(targets, table, num_classes)


def _boxes(targets: Boxes, table: NDArray[np.int64]) -> Boxes:
    moved = targets.copy()
    there = present(targets)
    numbers = np.where(there, table[np.where(there, targets[:, 1:, CLASS], 0).astype(np.int64)], -1)
    kept = numbers >= 0
    moved[:, 1:, CLASS] = numbers
    # Those that stay come first, in their order; behind them are zeros.
    order = np.argsort(~kept, axis=1, kind="stable")[..., None]
    rows = np.take_along_axis(np.where(kept[..., None], moved[:, 1:], 0.0), order, axis=1)
    moved[:, 1:] = rows.reshape(len(targets), -1, COLUMNS)
    moved[:, 0, COUNT] = kept.sum(axis=1)
    return moved
