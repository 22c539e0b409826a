"""How far scores may be from those on endlessly many images of the same kind: 95 % confidence intervals.

They follow from confusion counts alone, summed over clients and batches first. They say what other images
would give, not what another seed, split or training would.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.data.class_frequency_groups import tail_groups
from fedvision.tasks import metrics
from fedvision.tasks.confusion import ConfusionCounts

LEVEL = 0.95
"""Share of such intervals that hold the true value."""
REPLICATES, LEAST_REPLICATES, MOST_CELLS = 1000, 200, 4_000_000
"""Resamplings, and how many there are at least where counts have so many cells that fewer are drawn."""
_BLOCK = 4_000_000
"""Numbers of a block of resamplings that is held at a time."""
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """The ends of an interval, shares of 1."""

    low: float
    high: float


def wilson(found: Any, images: Any) -> tuple[Floats, Floats]:
    """Return the interval of a share of images, such as a recall; NaN without images.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22:209: it does
    not collapse where all images or none are found, and is near its level for few images.

    Args:
        found: Images that are named right, [...].
        images: All of them, [...].

    Returns:
        Lower and upper ends float64 [...].
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    n = np.asarray(images, np.float64)
    share = metrics.ratio(found, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Where none or all are found the ends are 0 and 1, which rounding misses by a hair.
    low = np.where(share == 0, 0.0, np.maximum(0.0, centre - half))
    high = np.where(share == 1, 1.0, np.minimum(1.0, centre + half))
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def mean_interval(values: Floats, low: Floats, high: Floats) -> Interval:
    """Return the interval of a mean of independent values [n] from theirs, at least one.

    Distances to the ends add up as squares (MOVER: Zou, Donner 2008, "Construction of confidence limits about
    effect measures", Statistics in Medicine 27:1693), so a class whose few images are all named right adds
    width, as it would not by resampling.
    """
    mean = values.mean()
    below, above = (np.sqrt(((values - end) ** 2).sum()) / len(values) for end in (low, high))
    return Interval(float(max(0.0, mean - below)), float(min(1.0, mean + above)))


def score_intervals(
    confusion: ConfusionCounts, counts: Sequence[int] | NDArray[Any] | None = None
) -> dict[str, Interval]:
    """Return the intervals of the scores that every classification has, by the scores' names.

    Accuracy has Wilson's, means of recalls have ``mean_interval`` of Wilson's. Resampling images, as is
    usual, covers too little where classes are rare: with six classes of 200 to 5 images and recalls of 97 %,
    77 % of its intervals of balanced accuracy held the true value, 92 % of these (400 draws; with recalls of
    80 % 91 % and 94 %). Macro F1 has the wider one of two: percentiles of 1,000 resamplings of each class's
    images (Efron 1979, Annals of Statistics 7:1), which see that one mistake lowers two classes' F1, and
    ``mean_interval`` of the classes' own.

    Args:
        confusion: Summed counts over C classes.
        counts: Training images of each class [C], from which rare classes follow; None where unknown.

    Returns:
        Nothing without images.
    """
    if not confusion.examples:
        return {}
    right, images = confusion.right_of, confusion.images_of
    low, high = wilson(right.sum(), confusion.examples)
    recalls = (metrics.recall(confusion), *wilson(right, images))
    groups = {} if counts is None else tail_groups(counts)
    measured = {
        name: [c for c in classes if images[c]]
        for name, classes in {"balanced_accuracy": range(len(images)), **groups}.items()
    }
    return {
        "accuracy": Interval(float(low), float(high)),
        "macro_f1": _macro_f1(confusion),
        **{
            name: mean_interval(*(ends[chosen] for ends in recalls))
            for name, chosen in measured.items()
            if chosen
        },
    }


def _macro_f1(confusion: ConfusionCounts) -> Interval:
    right, images = confusion.right_of, confusion.images_of
    either = images + confusion.predictions_of - right
    known = either > 0
    # F1 is 2 J / (1 + J) of J, the share of right ones among images that are of the class or named so: Lam
    # 2023, "Confidence Intervals for the F1 Score", arXiv 2309.14621.
    shares = (metrics.ratio(right, either), *wilson(right, either))
    alone = mean_interval(*((2 * one / (1 + one))[known] for one in shares))
    drawn = np.quantile(_resampled_f1(confusion), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(min(alone.low, float(drawn[0])), max(alone.high, float(drawn[1])))


def _resampled_f1(confusion: ConfusionCounts) -> Floats:
    """Return the macro F1 of resampled counts, float64 [R]; the same for the same counts."""
    times = int(np.clip(MOST_CELLS // max(1, len(confusion.cells)), LEAST_REPLICATES, REPLICATES))
    rng = np.random.default_rng(0)
    block = max(1, _BLOCK // confusion.num_classes)
    parts = [_block(confusion, min(block, times - start), rng) for start in range(0, times, block)]
    return np.concatenate(parts)


def _block(confusion: ConfusionCounts, times: int, rng: np.random.Generator) -> Floats:
    images = confusion.images_of
    right = np.zeros((times, len(images)), np.int64)
    named = np.zeros_like(right)
    edges = np.searchsorted(confusion.true, np.arange(len(images) + 1))
    for c in np.flatnonzero(images).tolist():
        row = slice(edges[c], edges[c + 1])
        drawn = rng.multinomial(images[c], confusion.counts[row] / images[c], times)
        named[:, confusion.predicted[row]] += drawn
        right[:, c] = drawn[:, confusion.predicted[row] == c].sum(1)
    # A class without images that no resampling names is left out of that one's mean, as of the score.
    f1 = metrics.ratio(2 * right, images + named)
    means: Floats = np.nanmean(f1[:, (images > 0) | (confusion.predictions_of > 0)], axis=1)
    return means
