"""What a trained model says of each pixel of images: masks, and how they become files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedvision.formatting import percent
from fedvision.tasks.class_predictions import ClassPredictions, LabelPredictions

if TYPE_CHECKING:
    from fedvision.tasks.base import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskPredictions:
    """The predicted class of each pixel of N images."""

    classes: tuple[str, ...]
    """Class names [C]."""
    names: Sequence[str]
    """[N]: an image's file, or the place of it in an array."""
    masks: NDArray[np.uint8]
    """uint8 [N, H, W]: the predicted classes, at the size in which the network sees images."""
    fit: str = "exact"
    """How image files were brought to that size."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Files that are not among the N, each with the reason."""
    notices: tuple[str, ...] = ()
    """What a person should know of the images."""

    def __len__(self) -> int:
        return len(self.masks)

    def shares(self) -> NDArray[np.float64]:
        """Return the share of each image's pixels that has each class [N, C]."""
        rows = [np.bincount(mask.ravel(), minlength=len(self.classes)) for mask in self.masks]
        counts = np.array(rows, np.float64).reshape(len(self), len(self.classes))
        return counts / max(1, self.masks[0].size if len(self) else 1)

    def table(self) -> Iterator[tuple[str, ...]]:
        """Yield the heading and a row of text for each image, for people: its classes by share."""
        yield "file", "classes by share of pixels"
        for name, row in zip(self.names, self.shares(), strict=True):
            found = [c for c in np.argsort(-row, kind="stable") if row[c]]
            yield name, ", ".join(f"{self.classes[c]} {percent(float(row[c]))}" for c in found)

    def to_csv(self) -> str:
        """Return a CSV table: ``file``, then ``share(NAME)`` of the pixels for each class."""
        page = io.StringIO()
        table = csv.writer(page, lineterminator="\n")
        table.writerow(["file", *(f"share({name})" for name in self.classes)])
        for name, row in zip(self.names, self.shares().tolist(), strict=True):
            table.writerow([name, *row])
        return page.getvalue()

    def to_jsonl(self) -> str:
        """Return lines of JSON: ``{"file", "shares": {NAME: share of the pixels}}``, or an ``"error"``."""
        lines = [
            {"file": name, "shares": dict(zip(self.classes, row, strict=True))}
            for name, row in zip(self.names, self.shares().tolist(), strict=True)
        ]
        lost = [{"file": name, "error": why} for name, why in self.unreadable.items()]
        return "".join(json.dumps(line) + "\n" for line in [*lines, *lost])


def made(
    task: Task,
    classes: tuple[str, ...],
    names: Sequence[str],
    decided: NDArray[Any],
    probabilities: NDArray[np.float32],
    *,
    fit: str = "exact",
    unreadable: Mapping[str, str],
    notices: tuple[str, ...],
) -> ClassPredictions | MaskPredictions:
    """Return what a task decided for N images, in the form that belongs to it.

    Args:
        task: The task.
        classes: Class names [C].
        names: [N]: the images' names.
        decided: Classes [N], labels [N, C], or masks [N, H, W].
        probabilities: float32 [N, C]; of masks none are held.
        fit: How image files were brought to the network's size.
        unreadable: Files that are not among the N, each with the reason.
        notices: What a person should know of the images.
    """
    if task.dense:
        return MaskPredictions(
            classes=classes, names=names, masks=decided, fit=fit, unreadable=unreadable, notices=notices
        )
    kind = LabelPredictions if decided.ndim == 2 else ClassPredictions
    return kind(
        classes=classes,
        names=names,
        labels=decided,
        probabilities=probabilities,
        unreadable=unreadable,
        notices=notices,
    )
