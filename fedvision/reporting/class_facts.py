"""What is known of each class beside its name: images to train and to measure with, recall, head or tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.class_frequency_groups import tail_groups
from fedvision.tasks import metrics
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.intervals import Interval, wilson


@dataclass(frozen=True, kw_only=True)
class ClassFacts:
    """What is known of one class."""

    label: int
    """Its number, from 0."""
    name: str
    """Its name."""
    train: int
    """Training images, or pixels, over all clients."""
    test: int
    """Images, or pixels, in the last measurement."""
    recall: float | None
    """Share of them that got this name; None without images."""
    interval: Interval | None = None
    """95 % confidence interval of the recall; None without images."""
    precision: float | None = None
    """Where an image may have several labels: share of the images named so that have it."""
    ap: float | None = None
    """Average precision: in the class or label against not; None where it was not measured."""
    auroc: float | None = None
    """Likewise: area under the ROC curve."""
    iou: float | None = None
    """Where pixels have classes: intersection over union; None of a class that is nowhere."""
    dice: float | None = None
    """Likewise: the Dice coefficient."""
    case_dice: float | None = None
    """Likewise: the mean of its Dice over images; None also where single images are not told of."""
    group: str
    """``"head"``, ``"medium"`` or ``"tail"``, as scores are made of them; empty where there are none."""


def class_facts(
    classes: Sequence[str],
    totals: NDArray[np.int64],
    distinct: NDArray[np.int64],
    confusion: ConfusionCounts | None = None,
    labels: Mapping[str, Sequence[Any]] | None = None,
    curves: Mapping[str, Sequence[Any]] | None = None,
    pixels: Mapping[str, Sequence[Any]] | None = None,
) -> list[ClassFacts]:
    """Return the classes, the one with most training images first.

    Args:
        classes: Names [C].
        totals: int64 [C]: training images of each class over all clients.
        distinct: int64 [C]: the same with every image counted once.
        confusion: What was measured; None, or counts over another number of classes, where nothing was.
        labels: What was measured instead where an image may have several labels: columns [C] by name, as
            records have them.
        curves: Areas under curves of what was measured, ``ap`` and ``auroc`` [C], where these are known
            beside ``confusion``.
        pixels: What was measured instead where pixels have classes: columns [C] by name, as records have
            them.
    """
    measured: dict[str, Sequence[Any]]
    if pixels and len(pixels["pixels"]) == len(classes):
        measured = {"test": [int(n) for n in pixels["pixels"]], "recall": [None] * len(classes)}
        measured |= {name: pixels[name] for name in ("iou", "dice", "case_dice")}
    elif labels and len(labels["positives"]) == len(classes):
        intervals = _intervals(labels["true_positives"], labels["positives"])
        measured = {"test": [int(n) for n in labels["positives"]], "interval": intervals}
        measured |= {name: labels[name] for name in ("recall", "precision", "ap", "auroc")}
    else:
        if confusion is None or confusion.num_classes != len(classes):
            confusion = ConfusionCounts.none(len(classes))
        measured = _of_confusion(confusion)
        measured |= {name: known for name, known in (curves or {}).items() if len(known) == len(classes)}
    groups = frequency_groups(distinct)
    return [
        ClassFacts(
            label=int(c),
            name=classes[c],
            train=int(totals[c]),
            group=groups[c],
            **{name: values[c] for name, values in measured.items()},
        )
        for c in by_frequency(distinct)
    ]


def _of_confusion(confusion: ConfusionCounts) -> dict[str, Sequence[Any]]:
    """Return images, recall and its interval of each class [C]."""
    test = confusion.images_of
    found = zip(metrics.recall(confusion), test, strict=True)
    return {
        "test": test.tolist(),
        "recall": [float(recall) if images else None for recall, images in found],
        "interval": _intervals(confusion.right_of, test),
    }


def _intervals(found: Any, images: Any) -> list[Interval | None]:
    """Return the interval of each class's recall [C]; None without images."""
    ends = zip(*wilson(found, images), strict=True)
    return [Interval(float(low), float(high)) if low == low else None for low, high in ends]


def rarest(classes: Sequence[ClassFacts], distinct: NDArray[np.int64], count: int) -> list[ClassFacts]:
    """Return the rarest ``count`` classes, the rarest last; ties are treated as those of the tail.

    Classes with equal counts stay together: they are among the rarest if the middle of their places is.
    So there may be more or fewer than ``count``, or none. None where all counts are equal.

    Args:
        classes: As ``class_facts`` returns them.
        distinct: int64 [C]: training images of each class by its number, every image counted once.
        count: How many.
    """
    if not distinct.any() or distinct.min() == distinct.max():
        return []

    def from_bottom(c: int) -> int:
        fewer, more = int((distinct < distinct[c]).sum()), int((distinct > distinct[c]).sum())
        return len(distinct) - 1 + fewer - more  # Twice the middle of its places, the rarest being 0.

    return [one for one in classes if from_bottom(one.label) < 2 * count]


def by_frequency(train: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return class numbers [C], the one with most training images first; ties by number."""
    return np.argsort(-train, kind="stable").astype(np.int64)


def frequency_groups(train: NDArray[np.int64]) -> list[str]:
    """Return each class's group [C]: ``head``, ``medium``, ``tail``; empty where all are equally frequent."""
    groups = [""] * len(train)
    for group, members in (tail_groups(train) if train.any() else {}).items():
        for c in members:
            groups[c] = group
    return groups
