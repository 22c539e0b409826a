"""A client's images as a view: the base array is shared, only the client's image numbers are its own.

A thousand shards of one data set cost their indices and no pixel, and those of a lazy split not even indices;
the base may be a memory map that many processes share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import ImageSet
from fedvision.data.image_counts import ImageCounts
from fedvision.data.targets import ClassCounter, Targets, count


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Some images of a base array."""

    images: NDArray[Any]
    """uint8 [N, H, W, channels], or float32 [N, V, 1, D]: the whole base, shared; may be a memory map."""
    labels: Targets
    """Targets [N, ...] of the whole base."""
    indices: NDArray[np.int64]
    """int64 [n]: which of them are in this shard."""
    further: NDArray[np.float32] | None = None
    """float32 [N, W]: what a network reads beside the pixels of the whole base; None where nothing."""

    @classmethod
    def whole(cls, image_set: ImageSet) -> Shard:
        """Return all images of a set as one shard."""
        return cls(
            images=image_set.images,
            labels=image_set.labels,
            indices=np.arange(len(image_set), dtype=np.int64),
            further=image_set.further,
        )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def targets(self) -> Targets:
        """A copy of the targets [n, ...] of this shard's images."""
        return self.labels[self.indices]

    def counts(self, num_classes: int, counter: ClassCounter = count) -> NDArray[np.int64]:
        """Return the class counts int64 [C], as a task counts them."""
        return counter(self.targets, num_classes)

    def image_counts(self, num_classes: int, counter: ClassCounter = count) -> ImageCounts:
        """Return how many images there are, and the class counts, as a task counts them."""
        return ImageCounts(images=len(self), counts=tuple(self.counts(num_classes, counter).tolist()))

    def batch(self, positions: NDArray[np.int64]) -> tuple[NDArray[Any], Targets]:
        """Copy some images out of the base.

        Args:
            positions: int64 [B], each from 0 to len(shard) - 1.

        Returns:
            Images uint8 [B, H, W, channels], or float32 [B, V, 1, D], and targets [B, ...], both writable and
            in memory.
        """
        at = self.indices[positions]
        return self.images[at], self.labels[at]

    def beside(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Copy what is read beside the pixels of some images out of the base: float32 [B, W], or None."""
        return None if self.further is None else self.further[self.indices[positions]]

    def take(self, positions: NDArray[np.int64]) -> Shard:
        """Return the shard of some positions [n] of this one; no pixel is copied."""
        return replace(self, indices=self.indices[positions])
