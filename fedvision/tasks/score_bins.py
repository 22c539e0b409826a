"""Areas under curves of scores that are held in bins, so that they add up over clients exactly.

Scores are logits, in 1,024 bins: 1/32 wide from -16 to 16, the outer ones open. Average precision and the
area under the ROC curve are those of the binned scores, in which the images of a bin are tied; ``bounds`` is
how far they are from those of the scores themselves.

Shape letters: L labels or classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedvision.tasks.metrics import ratio

if TYPE_CHECKING:
    import torch

BINS, PER_UNIT = 1024, 32
"""Bins of scores, and how many of them a logit of 1 has."""
Floats: TypeAlias = NDArray[np.float64]


def bin_of(logits: torch.Tensor) -> torch.Tensor:
    """Return the bin, int64 of the same shape, of each logit; that of NaN is the lowest."""
    half = BINS // 2
    scores = logits.nan_to_num(nan=-float(half), posinf=float(half), neginf=-float(half))
    return (scores * PER_UNIT).floor().clamp(-half, half - 1).long() + half


def average_precision(tables: NDArray[np.int64]) -> Floats:
    """Return the AP of each label [L], ``sum_b (R_b - R_(b-1)) P_b`` by falling score; NaN without images.

    Args:
        tables: int64 [L, 2, bins].
    """
    without, having = np.flip(tables, 2).cumsum(2).swapaxes(0, 1)
    steps = np.flip(tables[:, 1], 1)
    precision = np.nan_to_num(ratio(having, having + without))
    return ratio((steps * precision).sum(axis=1), having[:, -1])


def area_under_roc(tables: NDArray[np.int64]) -> Floats:
    """Return the share of pairs of images with and without a label that are in order, ties counting half.

    Args:
        tables: int64 [L, 2, bins].

    Returns:
        [L]; NaN where no image has the label, or all have it.
    """
    without, having = tables[:, 0].astype(np.float64), tables[:, 1].astype(np.float64)
    below = without.cumsum(1) - without
    return ratio((having * (below + without / 2)).sum(1), having.sum(1) * without.sum(1))


def bounds(tables: NDArray[np.int64]) -> dict[str, tuple[Floats, Floats]]:
    """Return the lowest and highest AP and AUROC [L] that scores of these bins can have.

    In every order of the images of a bin AP lies between that of those with the label last and first, and
    AUROC within half of the tied pairs.

    Args:
        tables: int64 [L, 2, bins].
    """
    ends = [[_ordered(rows, first) for rows in tables] for first in (False, True)]
    tied = (tables[:, 0].astype(np.float64) * tables[:, 1]).sum(1) / 2
    half = ratio(tied, tables[:, 0].sum(1).astype(np.float64) * tables[:, 1].sum(1))
    area = area_under_roc(tables)
    return {"ap": (np.array(ends[0]), np.array(ends[1])), "auroc": (area - half, area + half)}


def _ordered(rows: NDArray[np.int64], first: bool) -> float:
    """Return the AP of one label [2, bins] where, in each bin, those that have it come first or last."""
    without, having = np.flip(rows, 1)
    before = having.cumsum() - having
    false = without.cumsum() - (without if first else 0)
    places = np.repeat(np.arange(len(having)), having)
    if not len(places):
        return float("nan")
    right = np.arange(1, len(places) + 1)
    assert (before[places] < right).all()
    return float((right / (right + false[places])).mean())
