"""Wrongly named test images: which of them to show, and how they are kept.

A rare class fails first, and a mistake that the model is sure of says more than one it hesitated over. So the
wall in the report shows the rarest classes' mistakes, and of each class the most confident ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import RunFolderError


def choose(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.floating[Any]],
    train_counts: NDArray[np.int64],
    *,
    limit: int = 48,
    classes: int = 3,
) -> NDArray[np.int64]:
    """Return which images to show: indices [M], rarest class first, most confident first within a class.

    The rarest ``classes`` classes that have mistakes share the places; what one leaves free, others may fill.

    Args:
        labels: True classes [N].
        predicted: Predicted classes [N].
        confidence: Probability given to the predicted class [N].
        train_counts: Training images of each class [C]; ties go to the lower class number.
        limit: Largest M, >= 0.
        classes: Number of classes shown, >= 1.
    """
    wrong = np.flatnonzero(labels != predicted)
    rarest_first = np.argsort(train_counts, kind="stable")
    shown = [c for c in rarest_first if np.any(labels[wrong] == c)][:classes]
    queues = []
    for c in shown:
        mine = wrong[labels[wrong] == c]
        queues.append(mine[np.argsort(-confidence[mine], kind="stable")])
    return np.concatenate([np.empty(0, np.int64), *in_turn(queues, limit)])


def in_turn(queues: Sequence[NDArray[np.int64]], limit: int) -> list[NDArray[np.int64]]:
    """Let queues take numbers in turn, each its first one that nobody has taken, until ``limit`` are taken.

    Returns:
        What each queue took, in its order.
    """
    taken: list[list[int]] = [[] for _ in queues]
    waiting, gone = [iter(queue.tolist()) for queue in queues], set[int]()
    while len(gone) < limit:
        before = len(gone)
        for own, rest in zip(taken, waiting, strict=True):
            found = next((one for one in rest if one not in gone), None) if len(gone) < limit else None
            if found is not None:
                own.append(found)
                gone.add(found)
        if len(gone) == before:
            break
    return [np.array(own, np.int64) for own in taken]


@dataclass(frozen=True, kw_only=True)
class Misclassified:
    """M wrongly named test images, in the order in which they are shown.

    Raises:
        ValueError: The arrays do not fit each other.
    """

    images: NDArray[np.uint8]
    """uint8 [M, H, W, channels]."""
    labels: NDArray[np.int64]
    """True classes [M]."""
    predicted: NDArray[np.int64]
    """Predicted classes [M]."""
    confidence: NDArray[np.floating[Any]]
    """Probability given to the predicted class [M], 0 to 1."""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [M, H, W, channels], not {self.images.dtype} {list(self.images.shape)}"
            )
        sizes = {len(self.images), len(self.labels), len(self.predicted), len(self.confidence)}
        if len(sizes) != 1:
            raise ValueError(
                f"images, labels, predicted and confidence must be as many as each other, not {sorted(sizes)}"
            )

    def encode(self) -> bytes:
        """Return the images and facts as safetensors."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {
            "images": np.ascontiguousarray(self.images),
            "labels": self.labels.astype(np.int64),
            "predicted": self.predicted.astype(np.int64),
            "confidence": self.confidence.astype(np.float32),
        }
        return save(tensors, metadata={"about": "test images that the model names wrongly"})

    @classmethod
    def decode(cls, path: Path) -> Misclassified:
        """Read what ``encode`` wrote.

        Raises:
            RunFolderError: The file cannot be read or is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return cls(**load(path.read_bytes()))
        except OSError as error:
            raise RunFolderError(f"{path}: it cannot be read: {error.strerror}; restore access") from error
        except (SafetensorError, TypeError, ValueError) as error:
            raise RunFolderError(f"{path}: the file is damaged ({error}); delete it or run again") from error
