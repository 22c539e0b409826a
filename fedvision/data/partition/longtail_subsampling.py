"""The global long tail: rare classes made rare before any image goes to a client.

The exponential profile of Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples",
arXiv:1901.05555, and Cao et al. 2019 (LDAM), arXiv:1906.07413: the class of rank r among C keeps
``n_max * IF ** (-r / (C - 1))`` images, rounded down, so that IF is the most frequent class / the rarest.
The papers start from balanced data and rank by label; here the rank is by frequency, which is the same there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvision.ranges import check_range


def subsample(
    labels: NDArray[np.int64], imbalance: float, rng: np.random.Generator, num_classes: int
) -> NDArray[np.int64]:
    """Return the images that a long tail keeps, sorted.

    Classes are ranked by their number of images, equal ones by label, so the tail is cut where the data is
    already thin. A class with fewer images than its place in the profile keeps them all; on data that is
    already unbalanced the ratio is therefore at least ``imbalance``. Every class that has images keeps one;
    classes without images have no rank.

    Args:
        labels: int64 [N], from 0.
        imbalance: Images of the most frequent class / the rarest one, >= 1; 1 keeps all.
        rng: Chooses the images within a class.
        num_classes: C.

    Raises:
        ValueError: ``imbalance`` is below 1.
    """
    check_range(at_least=1, imbalance=imbalance)
    counts = np.bincount(labels, minlength=num_classes)
    retained = profile(counts, imbalance)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < np.repeat(retained, counts)]).astype(np.int64, copy=False)


def profile(counts: NDArray[np.int64], imbalance: float) -> NDArray[np.int64]:
    """Return how many images [C] of each class a long tail keeps, given how many there are [C]."""
    present = np.flatnonzero(counts)
    ranked = present[np.argsort(-counts[present], kind="stable")]
    retained = np.zeros_like(counts)
    if len(ranked):
        depth = np.arange(len(ranked)) / max(len(ranked) - 1, 1)
        # The small addend keeps a whole number whole where the power comes out a hair below it.
        wanted = np.floor(counts.max() / imbalance**depth + 1e-9).astype(np.int64)
        retained[ranked] = np.clip(wanted, 1, counts[ranked])
    return retained
