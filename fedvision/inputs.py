"""What a network reads beside an image's pixels: ``[model.inputs]``, and a batch that has such numbers.

The cells of an image become one row of float32 numbers [W], the inputs one after the other in the order of
their names, NaN wherever something is absent. So a network that does not mask what is absent returns NaN, and
never a number that rests on an invented value. Whole numbers below 2^24 are exact in float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from fedvision.tables import require

if TYPE_CHECKING:
    import torch

GRAMS = 32
"""Numbers of character n-grams that are kept of a word."""
_MOST_BUCKETS = 1 << 24
_OF_KIND = {
    "number": ("mean", "deviation"),
    "category": ("categories",),
    "text": ("words", "buckets"),
    "vector": ("columns", "file", "size"),
}


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What a network reads of an image's columns beside its pixels, a table ``[model.inputs.NAME]`` each."""

    kind: Literal["number", "category", "text", "vector"]
    """What the cells hold."""
    column: str = ""
    """The column; empty is the input's own name. For a ``vector`` of a ``file``: what names its row there."""
    categories: tuple[str, ...] = ()
    """Of a ``category``: all values that a cell may have. Empty takes those in the data, in a simulation."""
    mean: float = 0.0
    """Of a ``number``: what is subtracted, a constant on which all clients agree."""
    deviation: float = 1.0
    """Of a ``number``: by what the difference is divided."""
    words: int = 12
    """Of a ``text``: how many words are read, the first ones."""
    buckets: int = 4096
    """Of a ``text``: vectors that are learned; a character n-gram has the vector of its hash."""
    columns: tuple[str, ...] = ()
    """Of a ``vector``: the columns of its numbers, or in a simulation patterns such as ``["emb_*"]``, whose
    columns are put in the order of the numbers in their names."""
    file: str = ""
    """Of a ``vector``: an .npz file with ``keys`` [M], texts, and ``vectors`` [M, D], instead of columns."""
    size: int = 0
    """Of a ``vector`` of a ``file``: D; 0 takes the file's."""

    def check(self, where: str) -> None:
        """Check the keys against the kind.

        Args:
            where: The table's name, ``"model.inputs.age"``.

        Raises:
            ConfigError: A key is for another kind, missing or out of range, or the name is none of a tensor.
        """
        good = re.fullmatch(r"model\.inputs\.[A-Za-z0-9_-]+", where) is not None
        require(good, where, "must have a name of letters, digits, - and _ alone; column names the column")
        for kind, keys in _OF_KIND.items():
            for key in keys:
                default = InputConfig.__dataclass_fields__[key].default
                foreign = kind != self.kind and getattr(self, key) != default
                require(not foreign, f"{where}.{key}", f"is for kind {kind!r}, not {self.kind!r}")
        require(math.isfinite(self.mean), f"{where}.mean", f"must be finite, not {self.mean}")
        good = 0 < self.deviation < math.inf
        require(good, f"{where}.deviation", f"must be > 0 and finite, not {self.deviation}")
        require(self.words >= 1, f"{where}.words", f"must be >= 1, not {self.words}")
        good = 2 <= self.buckets <= _MOST_BUCKETS
        require(good, f"{where}.buckets", f"must be from 2 to {_MOST_BUCKETS:,}, not {self.buckets}")
        require(self.size >= 0, f"{where}.size", f"must be >= 0, not {self.size}")
        for key in ("categories", "columns"):
            names = getattr(self, key)
            require(len(set(names)) == len(names), f"{where}.{key}", f"must be different, not {list(names)}")
        if self.kind == "vector":
            one = bool(self.columns) != bool(self.file)
            require(one, where, "of kind 'vector' needs either columns or a file")

    @property
    def width(self) -> int:
        """How many numbers of an image's row it takes."""
        if self.kind == "text":
            return self.words * GRAMS
        return (len(self.columns) or self.size) if self.kind == "vector" else 1


def places(inputs: Mapping[str, InputConfig]) -> Iterator[tuple[str, InputConfig, slice]]:
    """Yield each input with its name and the place of its numbers in a row, in the order of the names."""
    start = 0
    for name in sorted(inputs):
        yield name, inputs[name], slice(start, start + inputs[name].width)
        start += inputs[name].width


def width(inputs: Mapping[str, InputConfig]) -> int:
    """Return W, the numbers of an image's row."""
    return sum(one.width for one in inputs.values())


@dataclass(frozen=True)
class Inputs:
    """A batch of images with what a network reads beside them.

    It has those methods of the images' tensor that a loop needs; they keep images and rows together.
    """

    images: torch.Tensor
    """float [B, channels, H, W]."""
    further: torch.Tensor
    """float32 [B, W] on the same device: the rows, NaN where something is absent."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Inputs:
        return Inputs(self.images[part], self.further[part])

    @property
    def shape(self) -> torch.Size:
        """[B, channels, H, W]."""
        return self.images.shape

    def split(self, sizes: Sequence[int]) -> Iterator[Inputs]:
        """Yield parts of so many images."""
        both = zip(self.images.split(sizes), self.further.split(sizes), strict=True)  # type: ignore[no-untyped-call]
        return (Inputs(*one) for one in both)

    def tensor_split(self, parts: int) -> list[Inputs]:
        """Return parts of about equal size."""
        both = zip(self.images.tensor_split(parts), self.further.tensor_split(parts), strict=True)
        return [Inputs(*one) for one in both]

    def flip(self, axis: int) -> Inputs:
        """Return the images mirrored along an axis, with the same rows."""
        return Inputs(self.images.flip(axis), self.further)

    def expand(self, *sizes: int) -> Inputs:
        """Return the images with their channel repeated, with the same rows."""
        return Inputs(self.images.expand(*sizes), self.further)


Batch: TypeAlias = "torch.Tensor | Inputs"
"""What a network gets: images float [B, channels, H, W], with further inputs where it reads such."""


def images_of(batch: Batch) -> torch.Tensor:
    """Return the images [B, channels, H, W] of a batch."""
    return batch.images if isinstance(batch, Inputs) else batch


def with_images(batch: Batch, images: torch.Tensor) -> Batch:
    """Return a batch with other images in the place of its own."""
    return Inputs(images, batch.further) if isinstance(batch, Inputs) else images


def for_trial(images: torch.Tensor, inputs: Mapping[str, InputConfig]) -> Batch:
    """Return images as a network with these inputs takes them: of every second image all inputs are absent.

    Those of the others are the first category, the mean, a word, a vector of zeros.
    """
    if not inputs:
        return images
    further = images.new_zeros(len(images), width(inputs))
    for _, config, place in places(inputs):
        if config.kind == "text":
            further[:, place.start + 1 : place.stop] = math.nan
    further[1::2] = math.nan
    return Inputs(images, further)
