"""The holdout of a client whose images belong together in groups: whole groups are kept from training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvision.data.groups import majority
from fedvision.data.shards import Shard, holdout


def holdout_groups(
    shard: Shard, groups: NDArray[np.int64] | None, share: float, rng: np.random.Generator
) -> tuple[Shard, Shard]:
    """Split a shard as ``shards.holdout``; with groups, each is one item with its most frequent label.

    Args:
        shard: The client's images.
        groups: int64 [n], the group of each image of the shard, or None.
        share: Share held out, of groups where there are any.
        rng: Chooses.

    Returns:
        Training shard and test shard; a client of one group trains on all of it.

    Raises:
        DataError: ``share`` is out of range.
    """
    if groups is None or not len(shard):
        return holdout(shard, share, rng)
    items, place = majority(shard.labels[shard.indices], groups)
    whole = Shard(images=shard.images, labels=items, indices=np.arange(len(items), dtype=np.int64))
    held = np.isin(place, holdout(whole, share, rng)[1].indices)
    return shard.take(np.flatnonzero(~held)), shard.take(np.flatnonzero(held))
