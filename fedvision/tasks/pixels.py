"""Numbers from pixels counted by true and predicted class: IoU, Dice, accuracy.

All follow from confusion counts over pixels, which are summed over images and clients *first*; with TP, FP
and FN of a class these are

====================  =====================================  ==========================================
IoU (Jaccard index)   ``TP / (TP + FP + FN)``                Jaccard 1901
Dice (F1)             ``2 TP / (2 TP + FP + FN)``            Dice 1945, Ecology 26:297
pixel accuracy        right pixels / measured pixels         Long et al. 2015, arXiv 1411.4038
====================  =====================================  ==========================================

They equal scikit-learn's ``jaccard_score`` and ``f1_score`` on all pixels in a row. A class that neither
truth nor prediction has is NaN and is left out of means, where scikit-learn takes 0 for it.

Case Dice is what medical papers print besides: a class's Dice of each image in which truth or prediction has
it, the mean over these images. A small region weighs as much as a large one there. It is made of rows (image,
class, TP, predicted pixels, true pixels), one for each such pair of image and class.

Shape letters: B images of a batch, C classes, M rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.metrics import f1, precision, ratio, recall

Floats = NDArray[np.float64]
ROW = 5
"""Numbers of a row."""


def iou(counts: ConfusionCounts) -> Floats:
    """Return the intersection over union of each class [C]; NaN of one that is nowhere."""
    right = counts.right_of
    return ratio(right, counts.images_of + counts.predictions_of - right)


def dice(counts: ConfusionCounts) -> Floats:
    """Return the Dice coefficient of each class [C]; NaN of one that is nowhere."""
    return f1(counts)


def micro_dice(counts: ConfusionCounts, classes: NDArray[np.int64]) -> float:
    """Return the Dice coefficient of the summed TP, FP and FN of some classes; NaN where they are nowhere.

    Over all classes it is the pixel accuracy, as every wrong pixel is one class's FP and another's FN.
    """
    right, either = counts.right_of[classes], (counts.images_of + counts.predictions_of)[classes]
    return float(ratio(2 * right.sum(), either.sum()))


def case_rows(
    labels: torch.Tensor, predicted: torch.Tensor, known: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Return the rows of a batch, int64 [M, 5], by image, then class.

    Args:
        labels: int64 [B, H, W]: true classes.
        predicted: int64 [B, H, W]: predicted ones.
        known: bool [B, H, W]: which pixels count.
        num_classes: C.
    """
    images = len(labels)
    first = torch.arange(images, device=labels.device).view(-1, 1, 1) * num_classes

    def count(classes: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        cells = (first + classes)[which]
        return torch.bincount(cells, minlength=images * num_classes).view(images, num_classes)

    right = count(labels, known & (labels == predicted))
    named, true = count(predicted, known), count(labels, known)
    pairs = (named + true).nonzero()
    image, of_class = pairs.unbind(1)
    return torch.cat([pairs, *(one[image, of_class][:, None] for one in (right, named, true))], 1)


def case_dice(counts: ConfusionCounts) -> Floats:
    """Return the mean over images of each class's Dice [C]; NaN of a class in none, or without rows."""
    rows = counts.rows
    if rows is None or not len(rows):
        return np.full(counts.num_classes, np.nan)
    _, classes, right, named, true = rows.T
    each = 2 * right / (named + true)
    sums = np.bincount(classes, each, counts.num_classes)
    return ratio(sums, np.bincount(classes, minlength=counts.num_classes))


def rows_problem(counts: ConfusionCounts) -> str | None:
    """Return what is wrong with rows that somebody sent beside counts of pixels; None where nothing is."""
    rows, classes = counts.rows, counts.num_classes
    if rows is None:
        return None
    if rows.min(initial=0) < 0 or (len(rows) and rows[:, 1].max() >= classes):
        return f"its rows hold what is below 0 or no class of {classes}"
    if (np.diff(rows[:, 0] * classes + rows[:, 1]) <= 0).any():
        return "its rows name a class of an image twice, or out of order"
    right, named, true = rows[:, 2:].T
    if (right > np.minimum(named, true)).any() or not (named + true).all():
        return "its rows have more right pixels than pixels, or none at all"
    sums = np.zeros((3, classes), np.int64)
    for place, values in enumerate((right, named, true)):
        np.add.at(sums[place], rows[:, 1], values)
    table = np.stack([counts.right_of, counts.predictions_of, counts.images_of])
    return None if np.array_equal(sums, table) else "its rows do not add up to its counts of pixels"


def by_class(counts: ConfusionCounts) -> dict[str, NDArray[Any]]:
    """Return pixels, predicted and right ones, IoU, Dice, case Dice, recall, precision of each class [C]."""
    return {
        "pixels": counts.images_of,
        "predicted_pixels": counts.predictions_of,
        "right_pixels": counts.right_of,
        "iou": iou(counts),
        "dice": dice(counts),
        "case_dice": case_dice(counts),
        "recall": recall(counts),
        "precision": precision(counts),
    }
