"""Which images are kept from training: of one client, or of a pool that many clients draw from.

Where every image belongs to one client at most, each client keeps a share of its own images. Where clients
share images (a lazy sequence, ``types.LazyClients``), an image that one client kept would be trained on by
another, so the images themselves are divided first, once for all clients.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import DataError

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Halves(NamedTuple):
    """A client's images: those it trains on and those it measures on, disjoint."""

    train: Indices
    """int64 [n]: image numbers, at least one."""
    test: Indices
    """int64 [m]: image numbers."""


def held_out(labels: Indices, share: float, rng: np.random.Generator) -> Mask:
    """Choose images to be kept from training, stratified by class.

    Systematic sampling along the classes: of a class of n images n x share are held out, rounded up or
    down, of all images likewise, and each image with probability exactly ``share``. So a client's only
    image of a rare class is measured as often as any other, and recall over many clients is not biased. One
    image always stays for training.

    Args:
        labels: int64 [n].
        share: Share held out, >= 0 and < 1.
        rng: Chooses the images.

    Returns:
        bool [n].

    Raises:
        DataError: ``share`` is out of range.
    """
    check_share(share)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    steps = np.floor(np.arange(len(labels) + 1) * share + rng.random())
    held = np.zeros(len(labels), np.bool_)
    held[order] = np.diff(steps) > 0
    if len(labels) and held.all():
        held[rng.integers(len(labels))] = False
    return held


def reserve(labels: Indices, share: float, rng: np.random.Generator) -> Mask:
    """Choose images that no client at all trains on; every class keeps one image for training at least.

    Args:
        labels: int64 [M]: the images that clients draw from.
        share: Share that is kept from training, >= 0 and < 1.
        rng: Chooses the images.

    Returns:
        bool [M].

    Raises:
        DataError: ``share`` is out of range.
    """
    held = held_out(labels, share, rng)
    without = np.setdiff1d(labels, labels[~held])
    for label in without:
        held[rng.choice(np.flatnonzero(labels == label))] = False
    return held


def check_share(share: float) -> None:
    """Check a share of images to be held out.

    Raises:
        DataError: It is not >= 0 and < 1.
    """
    if not 0 <= share < 1:
        raise DataError(f"evaluation.holdout must be >= 0 and < 1, not {share}")
