"""What is known of each image: one class, int64 [N], or for each of L labels whether it has it, uint8 [N, L].

A third form is a class for each pixel, uint8 [N, H, W], of which ``masks`` tells more. Class counts [C] are
images of each class, images that have each label, or pixels: those of several labels count several times. A
partition, the long tail and a holdout go by strata, one number an image. Targets of another form are carried
as they are; a task says what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedvision.data.masks import IGNORED, is_masks, mask_strata, pixel_counts
from fedvision.errors import DataError

Targets: TypeAlias = "NDArray[Any]"
"""int64 [N], from 0, or uint8 [N, L] of 0 and 1, or masks uint8 [N, H, W], or other numbers [N, ...] of three
dimensions or more."""
ClassCounter: TypeAlias = "Callable[[Targets, int], NDArray[np.int64]]"
"""``count(targets [N, ...], C) -> class counts [C]``."""

ONE_CLASS = "one class an image"
SEVERAL = (
    "any number of labels an image (npz with labels [N, L], or manifest with data.labels or "
    "data.label_separator)"
)
PIXELS = "a class for each pixel (mask-folder, nifti, or manifest with data.mask)"


def several(targets: Targets) -> bool:
    """Return whether these are labels of which an image may have several."""
    return targets.ndim == 2


def one_class(targets: Targets) -> bool:
    """Return whether each image has one class."""
    return targets.ndim == 1


def form(targets: Targets) -> str:
    """Return in words what is known of each image."""
    if one_class(targets):
        return ONE_CLASS
    if is_masks(targets):
        return PIXELS
    return (
        SEVERAL
        if several(targets)
        else f"targets {targets.dtype} {['N', *targets.shape[1:]]}".replace("'", "")
    )


def check_form(targets: Targets, images: int) -> None:
    """Check what can be checked without the classes.

    Raises:
        DataError: They have another type or shape, or a label is neither 0 nor 1.
    """
    if targets.ndim == 2 and targets.dtype == np.uint8 and len(targets) == images:
        if targets.size and targets.max() > 1:
            raise DataError(f"labels uint8 [N, L] must be 0 or 1, not {targets.max()}")
        return
    if targets.ndim > 2 and targets.dtype.kind in "biuf" and len(targets) == images:
        return
    if targets.dtype != np.int64 or targets.shape != (images,):
        shape = list(targets.shape)
        raise DataError(
            f"labels must be int64 [{images}] or uint8 [{images}, L], or have three dimensions or more, not "
            f"{targets.dtype} {shape}"
        )


def check_classes(targets: Targets, num_classes: int) -> None:
    """Check training targets against C classes or labels; those of another form are their task's to check.

    Raises:
        DataError: There is no image, a class is out of range, or there are not C labels.
    """
    if not len(targets):
        raise DataError(
            "there is no training image; see the parts of the data set, and data.val where its source has it"
        )
    if targets.ndim > 2:
        return
    if several(targets):
        if targets.shape[1] != num_classes:
            raise DataError(f"training labels must be [N, {num_classes}], not {list(targets.shape)}")
    elif targets.min() < 0 or targets.max() >= num_classes:
        found = f"{targets.min()} to {targets.max()}"
        raise DataError(f"training labels must be 0 to {num_classes - 1}, but there are {found}")


def count(targets: Targets, num_classes: int) -> NDArray[np.int64]:
    """Return how many images each class or label has, or how many pixels each class, int64 [C].

    Raises:
        DataError: The targets are of another form, of which a task alone knows what to count.
    """
    _require_known(targets)
    if is_masks(targets):
        return pixel_counts(targets, num_classes)
    if several(targets):
        counts: NDArray[np.int64] = targets.sum(axis=0, dtype=np.int64)
        return counts
    classes: NDArray[np.int64] = np.bincount(targets, minlength=num_classes)
    return classes


def count_each(
    lists: Sequence[NDArray[np.int64]], targets: Targets, num_classes: int, counter: ClassCounter = count
) -> NDArray[np.int64]:
    """Return the class counts of the images of each list of image numbers: int64 [K, C]."""
    if not one_class(targets) or counter is not count:
        rows = [counter(targets[part], num_classes) for part in lists]
        return np.stack(rows) if rows else np.zeros((0, num_classes), np.int64)
    owner = np.repeat(np.arange(len(lists)), [len(part) for part in lists])
    cell = owner * num_classes + targets[np.concatenate(lists)]
    counts: NDArray[np.int64] = np.bincount(cell, minlength=len(lists) * num_classes).reshape(-1, num_classes)
    return counts


def renumbered(targets: Targets, table: NDArray[np.int64], num_classes: int) -> Targets:
    """Return targets under other numbers; of several labels that become one, an image has it if it has any.

    Pixels of a class without a number become such that are ignored.

    Args:
        targets: Of C' classes or labels.
        table: int64 [C']: the new number of each, negative where there is none. A class without a number
            stays negative; a label without one is dropped.
        num_classes: C.

    Returns:
        int64 [N], uint8 [N, C], or masks uint8 [N, H, W].
    """
    if is_masks(targets):
        values = np.full(256, IGNORED, np.uint8)
        values[: len(table)] = np.where(table < 0, IGNORED, table)
        masks: NDArray[np.uint8] = values[targets]
        return masks
    if not several(targets):
        classes: NDArray[np.int64] = table[targets]
        return classes
    found = np.zeros((len(targets), num_classes), np.uint8)
    for own, label in enumerate(table.tolist()):
        if label >= 0:
            found[:, label] |= targets[:, own]
    return found


def strata(targets: Targets) -> NDArray[np.int64]:
    """Return the number by which each image is spread, int64 [N].

    The class; of several labels, or of the classes of its pixels, the rarest one that the image has, by the
    images given here, the lowest of equals; the number after the last where it has none. So a rare label is
    spread as a rare class is, whatever else its images show.

    Raises:
        DataError: The targets are of another form.
    """
    _require_known(targets)
    if is_masks(targets):
        return mask_strata(targets)
    if not several(targets):
        return targets
    labels = targets.shape[1]
    rarest_first = np.argsort(count(targets, labels), kind="stable")
    ordered = targets[:, rarest_first]
    first = np.where(ordered.any(axis=1), ordered.argmax(axis=1), labels)
    found: NDArray[np.int64] = np.append(rarest_first, labels)[first].astype(np.int64)
    return found


def equal(one: Targets, other: Targets) -> NDArray[np.bool_]:
    """Return which of N images have the same targets as their counterparts, bool [N]."""
    same: NDArray[np.bool_] = np.all(np.equal(one, other).reshape(len(one), -1), axis=1)
    return same


def _require_known(targets: Targets) -> None:
    if targets.ndim > 2 and not is_masks(targets):
        raise DataError(
            f"the data has {form(targets)}, which this task does not count; let its class override "
            "class_counts and strata"
        )
