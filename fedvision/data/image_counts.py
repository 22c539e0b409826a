"""How many images somebody has, and how many of each class: what a client reports and a register records.

Where an image has one class the class counts add up to the images. Where it may have several labels, or none,
or each of its boxes or pixels counts, neither number follows from the other, so they are reported, masked and
recorded together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fedvision.data.targets import Targets, count

PerImage: TypeAlias = Literal["one class", "one of each", "any number"]
"""What an image adds to class counts: 1 to that of its class, at most 1 to each, or any number, such as that
of its boxes."""


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Numbers of some images."""

    images: int
    """How many there are."""
    counts: tuple[int, ...]
    """How many of them each class or label has [C]; or boxes, or pixels, of each."""

    @classmethod
    def of(cls, targets: Targets, num_classes: int) -> ImageCounts:
        """Count images by their targets, int64 [N] or uint8 [N, C]."""
        return cls(images=len(targets), counts=tuple(count(targets, num_classes).tolist()))

    @classmethod
    def none(cls, num_classes: int) -> ImageCounts:
        """Return zeros: there are no images, or nothing is reported of them."""
        return cls(images=0, counts=(0,) * num_classes)

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> ImageCounts:
        """Read what ``numbers`` gives, at least one."""
        *counts, images = map(int, numbers)
        return cls(images=images, counts=tuple(counts))

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> ImageCounts:
        """Read what ``to_table`` gives; further keys of the table are not looked at."""
        return cls(images=int(table["images"]), counts=tuple(map(int, table["counts"])))

    def numbers(self) -> list[int]:
        """Return all numbers in a row [C + 1], the images last."""
        return [*self.counts, self.images]

    def to_table(self) -> dict[str, Any]:
        """Return plain values."""
        return {"counts": list(self.counts), "images": self.images}

    def agree(self, per_image: PerImage) -> bool:
        """Return whether so many images can have these counts.

        Args:
            per_image: What one of them adds.
        """
        if min(self.numbers()) < 0:
            return False
        if per_image == "one class":
            return sum(self.counts) == self.images
        if per_image == "one of each":
            return max(self.counts) <= self.images
        return self.images > 0 or not any(self.counts)
