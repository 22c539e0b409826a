"""Every simulated client's training and test images, as shards of one base."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import ImageSet
from fedvision.data.partition.split import Split
from fedvision.data.shards import Shard


@dataclass(frozen=True, eq=False)
class ClientShards:
    """Every client's training and test shard, made on access."""

    image_set: ImageSet
    """The base that all clients share."""
    split: Split
    """Which client trains and measures on which images."""

    def __len__(self) -> int:
        return len(self.split.clients)

    def train(self, client: int) -> Shard:
        """Return the images that a client (from 0) trains on, at least one."""
        return self._shard(self.split.clients[client])

    def test(self, client: int) -> Shard:
        """Return the images that a client (from 0) measures on; empty without a holdout."""
        return self._shard(self.split.test(client))

    def _shard(self, indices: NDArray[np.int64]) -> Shard:
        base = self.image_set
        return Shard(images=base.images, labels=base.labels, indices=indices, further=base.further)
