"""Numbers from pixels counted by true and predicted class: IoU, Dice, accuracy.

All follow from confusion counts over pixels, which are summed over images and clients *first*; with TP, FP
and FN of a class these are

====================  =====================================  ==========================================
IoU (Jaccard index)   ``TP / (TP + FP + FN)``                Jaccard 1901
Dice (F1)             ``2 TP / (2 TP + FP + FN)``            Dice 1945, Ecology 26:297
pixel accuracy        right pixels / measured pixels         Long et al. 2015, arXiv 1411.4038
====================  =====================================  ==========================================

They equal scikit-learn's ``jaccard_score`` and ``f1_score`` on all pixels in a row. A class that neither truth
nor prediction has is NaN and is left out of means, where scikit-learn takes 0 for it.

Shape letters: C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.metrics import f1, precision, ratio, recall

Floats = NDArray[np.float64]


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


def by_class(counts: ConfusionCounts) -> dict[str, NDArray[Any]]:
    """Return pixels, predicted and right ones, IoU, Dice, recall and precision of each class [C]."""
    return {
        "pixels": counts.images_of,
        "predicted_pixels": counts.predictions_of,
        "right_pixels": counts.right_of,
        "iou": iou(counts),
        "dice": dice(counts),
        "recall": recall(counts),
        "precision": precision(counts),
    }
