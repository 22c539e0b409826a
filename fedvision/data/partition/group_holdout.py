"""The holdout of a client whose images belong together in groups: whole groups are kept from training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvision.data.partition.groups import majority
from fedvision.data.partition.holdout import held_out


def held_out_groups(
    labels: NDArray[np.int64], groups: NDArray[np.int64] | None, share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose images as ``holdout.held_out``; with groups, each is one item with its most frequent label.

    Args:
        labels: int64 [n], a client's images.
        groups: int64 [n], the group of each image, or None.
        share: Share held out, of groups where there are any.
        rng: Chooses.

    Returns:
        bool [n], which images are held out; none of a client of one group.

    Raises:
        DataError: ``share`` is out of range.
    """
    if groups is None or not len(labels):
        return held_out(labels, share, rng)
    items, place = majority(labels, groups)
    return held_out(items, share, rng)[place]
