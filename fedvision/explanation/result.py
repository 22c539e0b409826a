"""Explanations of N images: maps, scores, and what is written of them.

Shape letters: N images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fedvision.explanation.faithfulness import Faithfulness


METHODS = ("auto", "grad-cam", "hires-cam", "attention-rollout", "integrated-gradients")


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What one branch of a fusion did."""

    map: NDArray[np.float32]
    """[H, W], 0 to 1; zeros where the method makes none of it."""
    drop: float
    """By how much the class's log-odds fall where the branch sees an empty image, in nats."""
    share: float | None
    """Its part of what all branches' drops add up to; None where none of them falls."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Of one image."""

    map: NDArray[np.float32]
    """The importance of each pixel [H, W], 0 to 1."""
    method: str
    """What made it."""
    label: int
    """The class that is explained."""
    predicted: int
    """The most probable class."""
    probability: float
    """That of the class that is explained."""
    scores: Faithfulness
    """How well the map agrees with the network."""
    completeness_error: float | None = None
    """Of integrated gradients: |sum - (f(x) - f(x'))| in nats."""
    complete: bool = True
    """Whether that is within the tolerance."""
    branches: Mapping[str, Branch] = field(default_factory=dict)
    """Of a fusion, by name."""


@dataclass(frozen=True, kw_only=True)
class Explanations:
    """Of N images, in their order."""

    classes: tuple[str, ...]
    """Class names [C]."""
    names: Sequence[str]
    """Of the images [N]."""
    images: NDArray[np.uint8]
    """uint8 [N, H, W, channels]."""
    each: Sequence[Explanation]
    """[N]."""
    true: Sequence[int | None] = ()
    """Their true classes [N] where known; empty where none is."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Files that could not be read, with the reason."""
    notices: tuple[str, ...] = ()
    """What a person should know."""

    def __len__(self) -> int:
        return len(self.each)

    @property
    def maps(self) -> NDArray[np.float32]:
        """float32 [N, H, W], 0 to 1."""
        return np.stack([one.map for one in self.each])

    @property
    def labels(self) -> NDArray[np.int64]:
        """The classes that are explained [N]."""
        return np.array([one.label for one in self.each], np.int64)

    def mean(self, score: str) -> float:
        """Return the mean over images of ``deletion``, ``insertion``, their ``random_`` ones or ``gain``."""
        return float(np.mean([getattr(one.scores, score) for one in self.each]))

    @property
    def gain_error(self) -> float:
        """The standard error of the mean gain; infinite for one image."""
        gains = [one.scores.gain for one in self.each]
        return float(np.std(gains, ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.inf

    @property
    def verdict(self) -> str:
        """A sentence: whether the maps are better than random ones."""
        return verdict(self.mean("gain"), self.gain_error, len(self))

    def to_record(self) -> dict[str, Any]:
        """Return the numbers as JSON has them; maps and images are no part of it."""
        keys = ("deletion", "insertion", "random_deletion", "random_insertion", "gain")
        rows = []
        for place, one in enumerate(self.each):
            row: dict[str, Any] = {
                "image": self.names[place],
                "class": self.classes[one.label],
                "predicted": self.classes[one.predicted],
                "probability": one.probability,
                "method": one.method,
                **{key: getattr(one.scores, key) for key in keys},
                "better_than_random": one.scores.gain > 0,
            }
            if self.true and (known := self.true[place]) is not None:
                row["true"] = self.classes[known]
            if one.completeness_error is not None:
                row |= {"completeness_error": one.completeness_error, "complete": one.complete}
            if one.branches:
                row["branches"] = {
                    name: {"share": part.share, "drop": part.drop} for name, part in one.branches.items()
                }
            rows.append(row)
        return {
            "images": rows,
            "mean": {key: self.mean(key) for key in keys} | {"gain_error": self.gain_error},
            "verdict": self.verdict,
            "unreadable": dict(self.unreadable),
        }


def verdict(gain: float, error: float, images: int) -> str:
    """Return a sentence on the mean gain over so many images and its standard error.

    Two standard errors part a map from chance, about 95 of 100 times.
    """
    if images == 1:
        return (
            f"The map is {'better' if gain > 0 else 'no better'} than a random one; one image proves little."
        )
    of = f"on these {images} images"
    if gain > 2 * error:
        return f"The maps are better than random ones {of}."
    if gain < -2 * error:
        return f"The maps are worse than random ones {of}: do not rely on them."
    return f"The maps are not measurably better than random ones {of}: do not rely on them."
