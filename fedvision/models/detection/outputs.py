"""What detectors are trained with and return, whatever their kind.

Shape letters: B batch, C classes, M boxes of an image at most, D detections of an image at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fedvision.ranges import check_range
from fedvision.types import HeadForm, LossFn


class Truth(NamedTuple):
    """The objects of a batch of images."""

    corners: torch.Tensor
    """float32 [B, M, 4]: left, top, right, bottom in pixels of the images that the network sees."""
    classes: torch.Tensor
    """int64 [B, M]."""
    present: torch.Tensor
    """bool [B, M]: which places hold an object. What surrounds a crowd is none."""


class Detections(NamedTuple):
    """What was found in a batch of images, each image's best first."""

    corners: torch.Tensor
    """float32 [B, D, 4]: left, top, right, bottom in pixels of the images, within them."""
    scores: torch.Tensor
    """float32 [B, D], from 0 to 1, falling."""
    classes: torch.Tensor
    """int64 [B, D]."""
    counts: torch.Tensor
    """int64 [B]: how many of the D places of each image are filled."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How boxes become detections.

    Raises:
        ValueError: A threshold is out of range.
    """

    score_threshold: float = 0.01
    """Boxes of a lower score are dropped."""
    nms_threshold: float = 0.6
    """Of two boxes of a class that overlap by a higher IoU, the one of the lower score is dropped."""
    candidates: int = 1000
    """Boxes of an image that are looked at, the best ones."""
    most: int = 100
    """Detections of an image."""

    def __post_init__(self) -> None:
        check_range(at_least=0, below=1, score_threshold=self.score_threshold)
        check_range(above=0, at_most=1, nms_threshold=self.nms_threshold)


class DetectorOutput(ABC):
    """What a detector makes of B images: losses for their objects, or detections."""

    form: HeadForm
    """Which form of a loss it takes."""
    logits: torch.Tensor
    """Of classes [B, P, C], or with the background [B, P, C + 1]."""

    @abstractmethod
    def losses(self, truth: Truth, criterion: LossFn) -> torch.Tensor:
        """Return the loss of each image [B]: that of classes by the criterion, and those of boxes.

        Args:
            truth: The objects.
            criterion: The loss of classes, in this output's ``form``.
        """

    @abstractmethod
    def detections(self) -> Detections:
        """Return what was found."""
