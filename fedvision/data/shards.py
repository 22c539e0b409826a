"""A client's images as a view: the base array is shared, only the client's image numbers are its own.

A thousand shards of one data set cost their indices and no pixel, and those of a lazy split not even indices;
the base may be a memory map that many processes share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvision import seeding
from fedvision.data.images import ImageSet
from fedvision.data.split import Split
from fedvision.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Some images of a base array."""

    images: NDArray[np.uint8]
    """uint8 [N, H, W, channels]: the whole base, shared; may be a memory map."""
    labels: NDArray[np.int64]
    """int64 [N]: labels of the whole base."""
    indices: NDArray[np.int64]
    """int64 [n]: which of them are in this shard."""

    @classmethod
    def whole(cls, image_set: ImageSet) -> Shard:
        """Return all images of a set as one shard."""
        return cls(
            images=image_set.images,
            labels=image_set.labels,
            indices=np.arange(len(image_set), dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.indices)

    def counts(self, num_classes: int) -> NDArray[np.int64]:
        """Return the number of images of each class, int64 [C]."""
        return np.bincount(self.labels[self.indices], minlength=num_classes)

    def batch(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Copy some images out of the base.

        Args:
            positions: int64 [B], each from 0 to len(shard) - 1.

        Returns:
            Images uint8 [B, H, W, channels] and labels int64 [B], both writable and in memory.
        """
        at = self.indices[positions]
        return self.images[at], self.labels[at]

    def take(self, positions: NDArray[np.int64]) -> Shard:
        """Return the shard of some positions [n] of this one; no pixel is copied."""
        return Shard(images=self.images, labels=self.labels, indices=self.indices[positions])


def holdout(shard: Shard, share: float, rng: np.random.Generator) -> tuple[Shard, Shard]:
    """Split a shard into training and test images, stratified by class.

    Systematic sampling along the classes: a class of n images gives n x share of them to the test, rounded up
    or down, the whole shard likewise, and each image is held out with probability exactly ``share``. So a
    client's only image of a rare class is measured as often as any other, and recall over many clients is
    not biased. One image always stays for training.

    Args:
        shard: The client's images.
        share: Share held out, >= 0 and < 1; 0 makes an empty test.
        rng: Chooses the images.

    Returns:
        Training shard and test shard: disjoint, together the whole, each in the shard's order.

    Raises:
        DataError: ``share`` is out of range.
    """
    if not 0 <= share < 1:
        raise DataError(f"evaluation.holdout must be >= 0 and < 1, not {share}")
    order = rng.permutation(len(shard))
    order = order[np.argsort(shard.labels[shard.indices[order]], kind="stable")]
    steps = np.floor(np.arange(len(shard) + 1) * share + rng.random())
    held = np.zeros(len(shard), np.bool_)
    held[order] = np.diff(steps) > 0
    if len(shard) and held.all():
        held[rng.integers(len(shard))] = False
    return shard.take(np.flatnonzero(~held)), shard.take(np.flatnonzero(held))


@dataclass(frozen=True, eq=False)
class ClientShards:
    """Every client's training and test shard, made when asked for.

    Raises:
        DataError: ``holdout`` is out of range.
    """

    image_set: ImageSet
    """The base that all clients share."""
    split: Split
    """Which client has which images."""
    holdout: float = 0.0
    """Share of each client's images kept from training."""
    seed: int = 0
    """The experiment's root seed."""

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise DataError(f"evaluation.holdout must be >= 0 and < 1, not {self.holdout}")

    def __len__(self) -> int:
        return len(self.split.clients)

    def train(self, client: int) -> Shard:
        """Return the images that a client (from 0) trains on, at least one."""
        return self._halves(client)[0]

    def test(self, client: int) -> Shard:
        """Return the images that a client (from 0) measures on; empty where ``holdout`` is 0."""
        return self._halves(client)[1]

    def totals(self) -> NDArray[np.int64]:
        """Return the training images of each class over all clients, int64 [C].

        Where the split is counted and not large they are counted too; else what is held out is taken off as
        an expectation, and a class that is there keeps 1 image at least.
        """
        totals: NDArray[np.int64] = self.split.totals
        if not self.holdout:
            return totals
        if self.split.exact and not self.split.sampled:
            return sum((self.train(k).counts(len(totals)) for k in range(len(self))), np.zeros_like(totals))
        kept: NDArray[np.int64] = np.rint(totals * (1 - self.holdout)).astype(np.int64)
        return np.maximum(kept, np.minimum(totals, 1))

    def _halves(self, client: int) -> tuple[Shard, Shard]:
        images, labels = self.image_set.images, self.image_set.labels
        shard = Shard(images=images, labels=labels, indices=self.split.clients[client])
        if not self.holdout:
            return shard, shard.take(np.zeros(0, np.int64))
        # The stream is the client's own: its halves do not depend on who was asked before.
        return holdout(shard, self.holdout, seeding.numpy_stream(self.seed, "holdout", client))
