"""Numbers from confusion counts: accuracy, recall, F1, rare classes, the spread over clients.

Every function takes confusion counts [C, C], rows true and columns predicted, that were summed over clients
and batches *first*: a mean of clients' recalls or F1 is neither recall nor F1, so ratios are never averaged.
(``client_spread`` describes how clients differ and is no figure of the federation.)

NaN says that no image tells: the recall of a class without test images, the accuracy of no images. Such
classes are left out of means. The figures equal scikit-learn's on the pooled predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import RunError

if TYPE_CHECKING:
    from fedvision.types import MetricFn


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Count predictions.

    Args:
        labels: True classes [N], each >= 0 and < C.
        predicted: Predicted classes [N], likewise.
        num_classes: C.

    Returns:
        int64 [C, C]: rows true, columns predicted.

    Raises:
        ValueError: The arrays differ in shape or hold a number that is no class.
    """
    if labels.shape != predicted.shape or labels.ndim != 1:
        shapes = f"{list(labels.shape)} and {list(predicted.shape)}"
        raise ValueError(f"labels and predictions must both be [N], not {shapes}")
    for name, values in (("labels", labels), ("predictions", predicted)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(f"{name} must be >= 0 and < {num_classes}, not {values.min()} to {values.max()}")
    pairs = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Return the share of images that are predicted right; NaN without images."""
    counts = _checked(confusion)
    return float(_ratio(np.trace(counts), counts.sum()))


def recall(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each class's images that are predicted right [C]; NaN for a class without any."""
    counts = _checked(confusion)
    return _ratio(np.diag(counts), counts.sum(1))


def precision(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each class's predictions that are right [C].

    A class that has images and is never predicted has 0; one without either has NaN.
    """
    counts = _checked(confusion)
    found = _ratio(np.diag(counts), counts.sum(0))
    return np.where(np.isnan(found) & (counts.sum(1) > 0), 0.0, found)


def f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each class's F1 [C], ``2 right / (images + predictions)``; NaN for a class without either."""
    counts = _checked(confusion)
    return _ratio(2 * np.diag(counts), counts.sum(1) + counts.sum(0))


def balanced_accuracy(confusion: NDArray[np.int64]) -> float:
    """Return the mean recall of the classes that have images."""
    return _mean(recall(confusion))


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that have images or predictions."""
    return _mean(f1(confusion))


def geometric_mean(confusion: NDArray[np.int64]) -> float:
    """Return the geometric mean of the recalls of the classes that have images; 0 if one is never right.

    Kubat, Matwin 1997, "Addressing the Curse of Imbalanced Training Sets: One-Sided Selection", there for two
    classes.
    """
    recalls = recall(confusion)
    with np.errstate(divide="ignore"):
        return float(np.exp(_mean(np.log(recalls))))


def kappa(confusion: NDArray[np.int64]) -> float:
    """Return Cohen's kappa ``(a - e) / (1 - e)``: accuracy a beyond e, that of chance with the same totals.

    Cohen 1960, "A Coefficient of Agreement for Nominal Scales". NaN where chance is always right: one class
    holds all images and all predictions.
    """
    counts = _checked(confusion)
    total = counts.sum()
    chance = float(_ratio(counts.sum(0) @ counts.sum(1).astype(np.float64), float(total) ** 2))
    return float(_ratio(accuracy(counts) - chance, 1 - chance))


def tail_groups(counts: Sequence[int] | NDArray[Any]) -> dict[str, tuple[int, ...]]:
    """Return the class numbers of the frequent, the middling and the rare classes.

    Classes are ordered by falling training count. The first 30 % are the head and the last 30 % the tail,
    rounded down but at least one class each; ten different counts give 3, 4 and 3. Classes with equal counts
    stay together, in the group in which the middle of their places lies: nothing but their number would tell
    them apart. So there may be no head, medium or tail.

    Args:
        counts: Training images per class [C].

    Returns:
        ``head``, ``medium`` and ``tail``, each by falling count; nothing where all counts are equal: no class
        is rarer than another.

    Raises:
        ValueError: There is no class.
    """
    values = np.asarray(counts, dtype=np.float64)
    if not len(values):
        raise ValueError("counts must hold at least one class")
    if values.min() == values.max():
        return {}
    size, groups = max(1, 3 * len(values) // 10), dict[str, list[int]](head=[], medium=[], tail=[])
    for c in np.argsort(-values, kind="stable"):
        more, fewer = int((values > values[c]).sum()), int((values < values[c]).sum())
        # Twice the middle of its places from either end, the first place being 0.
        from_top, from_bottom = len(values) - 1 + more - fewer, len(values) - 1 + fewer - more
        name = "head" if from_top < 2 * size else "tail" if from_bottom < 2 * size else "medium"
        groups[name].append(int(c))
    return {name: tuple(classes) for name, classes in groups.items()}


def group_recall(confusion: NDArray[np.int64], groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the mean recall of each group's classes that have images; NaN for a group without any."""
    recalls = recall(confusion)
    return {name: _mean(recalls[list(classes)]) for name, classes in groups.items()}


def scores(
    confusion: NDArray[np.int64],
    counts: Sequence[int] | NDArray[Any] | None = None,
    extra: Mapping[str, MetricFn] | None = None,
) -> dict[str, float]:
    """Return the figures that every run reports.

    Args:
        confusion: Summed counts [C, C].
        counts: Training images per class [C]; where they differ there are ``head``, ``medium`` and ``tail``.
        extra: Further metrics by name.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``macro_f1``, the groups' recalls, then the further ones.

    Raises:
        ValueError: The confusion counts are not square or negative, or ``counts`` has another C.
    """
    found = {
        "accuracy": accuracy(confusion),
        "balanced_accuracy": balanced_accuracy(confusion),
        "macro_f1": macro_f1(confusion),
    }
    if counts is not None:
        if len(counts) != len(confusion):
            raise ValueError(f"counts must hold {len(confusion)} classes as the confusion, not {len(counts)}")
        found |= group_recall(confusion, tail_groups(counts))
    return found | {name: _own(name, metric, confusion) for name, metric in (extra or {}).items()}


def _own(name: str, metric: MetricFn, confusion: NDArray[np.int64]) -> float:
    try:
        return float(metric(confusion))
    except Exception as error:
        raise RunError(
            f"evaluation.metrics: {name} raised {type(error).__name__}: {error}; it must return a number for "
            "any confusion counts, NaN where there is none"
        ) from error


def client_spread(confusions: Mapping[int, NDArray[np.int64]]) -> dict[str, float]:
    """Describe how accuracy differs over clients, each client alike; those without images are left out.

    Args:
        confusions: Each client's own counts [C, C] by its number.

    Returns:
        ``clients`` (how many have images), ``worst`` and ``best`` accuracy with ``worst_client`` and
        ``best_client`` (the lowest number of several) and the images on which these two rest,
        ``worst_images`` and ``best_images``, ``mean``, ``std`` (of this population, divided by its size),
        ``p10`` (10th percentile, interpolated). All but ``clients`` are NaN where nobody has images.
    """
    measured = {client: accuracy(counts) for client, counts in sorted(confusions.items()) if counts.sum()}
    if not measured:
        worst_and_best = ("worst_client", "worst", "worst_images", "best_client", "best", "best_images")
        return {"clients": 0, **dict.fromkeys((*worst_and_best, "mean", "std", "p10"), float("nan"))}
    worst, best = min(measured, key=measured.__getitem__), max(measured, key=measured.__getitem__)
    values = np.array(list(measured.values()))
    return {
        "clients": len(measured),
        "worst_client": worst,
        "worst": measured[worst],
        "worst_images": int(confusions[worst].sum()),
        "best_client": best,
        "best": measured[best],
        "best_images": int(confusions[best].sum()),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "p10": float(np.percentile(values, 10)),
    }


def _checked(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"confusion counts must be [C, C], not {list(counts.shape)}")
    if (counts < 0).any():
        raise ValueError(f"confusion counts must be >= 0, not {counts.min()}")
    return counts


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """Return part / whole, NaN where the whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    ratio: NDArray[np.float64] = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole != 0)
    return ratio


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of what is not NaN, NaN where nothing is left."""
    told = values[~np.isnan(values)]
    return float(told.mean()) if told.size else float("nan")
