"""Numbers from confusion counts: accuracy, recall, F1, rare classes, the spread over clients.

Every function takes confusion counts, as pairs or as a matrix [C, C] with rows true and columns predicted,
that were summed over clients and batches *first*: a mean of clients' recalls or F1 is neither recall nor F1,
so ratios are never averaged.

NaN means no image contributes: the recall of a class without test images, the accuracy of no images. Such
classes are left out of means. The figures equal scikit-learn's on the pooled predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedvision.data.class_frequency_groups import tail_groups
from fedvision.errors import RunError
from fedvision.tasks.confusion import ConfusionCounts

if TYPE_CHECKING:
    from fedvision.types import MetricFn

Confusion: TypeAlias = "ConfusionCounts | NDArray[np.int64]"
"""Confusion counts in either form."""


def accuracy(confusion: Confusion) -> float:
    """Return the share of images that are predicted right; NaN without images."""
    counts = _checked(confusion)
    return float(ratio(counts.right_of.sum(), counts.examples))


def recall(confusion: Confusion) -> NDArray[np.float64]:
    """Return the share of each class's images that are predicted right [C]; NaN for a class without any."""
    counts = _checked(confusion)
    return ratio(counts.right_of, counts.images_of)


def precision(confusion: Confusion) -> NDArray[np.float64]:
    """Return the share of each class's predictions that are right [C].

    A class that has images and is never predicted has 0; one without either has NaN.
    """
    counts = _checked(confusion)
    found = ratio(counts.right_of, counts.predictions_of)
    return np.where(np.isnan(found) & (counts.images_of > 0), 0.0, found)


def f1(confusion: Confusion) -> NDArray[np.float64]:
    """Return each class's F1 [C], ``2 right / (images + predictions)``; NaN for a class without either."""
    counts = _checked(confusion)
    return ratio(2 * counts.right_of, counts.images_of + counts.predictions_of)


def balanced_accuracy(confusion: Confusion) -> float:
    """Return the mean recall of the classes that have images."""
    return mean_of(recall(confusion))


def macro_f1(confusion: Confusion) -> float:
    """Return the mean F1 of the classes that have images or predictions."""
    return mean_of(f1(confusion))


def geometric_mean(confusion: Confusion) -> float:
    """Return the geometric mean of the recalls of the classes that have images; 0 if one is never right.

    Kubat, Matwin 1997, "Addressing the Curse of Imbalanced Training Sets: One-Sided Selection", there for two
    classes.
    """
    recalls = recall(confusion)
    with np.errstate(divide="ignore"):
        return float(np.exp(mean_of(np.log(recalls))))


def kappa(confusion: Confusion) -> float:
    """Return Cohen's kappa ``(a - e) / (1 - e)``: accuracy a beyond e, that of chance with the same totals.

    Cohen 1960, "A Coefficient of Agreement for Nominal Scales". NaN where chance is always right: one class
    holds all images and all predictions.
    """
    counts = _checked(confusion)
    named, total = counts.predictions_of, counts.examples
    chance = float(ratio(named @ counts.images_of.astype(np.float64), float(total) ** 2))
    return float(ratio(accuracy(counts) - chance, 1 - chance))


def group_recall(confusion: Confusion, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the mean recall of each group's classes that have images; NaN for a group without any."""
    recalls = recall(confusion)
    return {name: mean_of(recalls[list(classes)]) for name, classes in groups.items()}


def scores(
    confusion: Confusion,
    counts: Sequence[int] | NDArray[Any] | None = None,
    extra: Mapping[str, MetricFn] | None = None,
) -> dict[str, float]:
    """Return the figures that every run reports.

    Args:
        confusion: Summed counts over C classes.
        counts: Training images per class [C]; where they differ there are ``head``, ``medium`` and ``tail``.
        extra: Further metrics by name.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``macro_f1``, the groups' recalls, then the further ones.

    Raises:
        ValueError: The confusion counts are not square or negative, or ``counts`` has another C.
    """
    checked = _checked(confusion)
    found = {
        "accuracy": accuracy(checked),
        "balanced_accuracy": balanced_accuracy(checked),
        "macro_f1": macro_f1(checked),
    }
    if counts is not None:
        if len(counts) != checked.num_classes:
            raise ValueError(
                f"counts must hold {checked.num_classes} classes as the confusion, not {len(counts)}"
            )
        found |= group_recall(checked, tail_groups(counts))
    return found | {name: _own(name, metric, checked) for name, metric in (extra or {}).items()}


def _own(name: str, metric: MetricFn, confusion: ConfusionCounts) -> float:
    if metric in (geometric_mean, kappa):  # they need no matrix, which is large where classes are many
        return own_metric(name, metric, confusion)
    return own_metric(name, metric, confusion.matrix())


def own_metric(name: str, metric: Callable[[Any], float], counted: Any) -> float:
    """Return a further metric of what was counted.

    Raises:
        RunError: It failed.
    """
    try:
        return float(metric(counted))
    except (Exception, SystemExit) as error:
        raise RunError(
            f"evaluation.metrics: {name} raised {type(error).__name__}: {error}; it must return a number for "
            "any counts, NaN where there is none"
        ) from error


def _checked(confusion: Confusion) -> ConfusionCounts:
    if isinstance(confusion, ConfusionCounts):
        return confusion
    return ConfusionCounts.from_matrix(confusion)


def ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """Return part / whole, NaN where the whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    ratio: NDArray[np.float64] = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole != 0)
    return ratio


def mean_of(values: NDArray[np.float64]) -> float:
    """Return the mean of what is not NaN, NaN where nothing is left."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
