"""What a trained classifier says: its predictions for images, and its scores on labelled ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.tasks import metrics
from fedvision.tasks.confusion import ConfusionCounts


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassPredictions:
    """The predicted class of each of N images."""

    classes: tuple[str, ...]
    """Class names [C]."""
    names: Sequence[str]
    """[N]: an image's file, or the place of it in an array."""
    labels: NDArray[np.int64]
    """int64 [N]: number of the predicted class."""
    probabilities: NDArray[np.float32]
    """float32 [N, C]: of each class; their sum over the classes is 1."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Files that are not among the N, each with the reason."""
    notices: tuple[str, ...] = ()
    """What a person should know of the images."""

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self) -> Iterator[tuple[str, str, np.float32]]:
        """Yield each image's name, class and the probability of that class."""
        for name, label, row in zip(self.names, self.labels.tolist(), self.probabilities, strict=True):
            yield name, self.classes[label], row[label]

    def to_csv(self) -> str:
        """Return a CSV table: ``file``, ``class``, ``probability``, then ``p(NAME)`` for each class."""
        page = io.StringIO()
        table = csv.writer(page, lineterminator="\n")
        table.writerow(["file", "class", "probability", *(f"p({name})" for name in self.classes)])
        for (name, predicted, best), row in zip(self.rows(), self.probabilities, strict=True):
            # The shortest text that reads back as the same float32.
            table.writerow([name, predicted, str(best), *map(str, row)])
        return page.getvalue()


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassScores:
    """A model's scores on N labelled images."""

    classes: tuple[str, ...]
    """Class names [C]."""
    class_counts: tuple[int, ...] | None
    """Training images of each class [C], by which classes are frequent or rare; None where unknown."""
    confusion: ConfusionCounts
    """Images by true and predicted class."""
    loss: float
    """Mean cross-entropy of the predicted probabilities, nats; NaN without images."""
    scores: Mapping[str, float]
    """Shares of 1 by name, as every run reports them; NaN where no image tells."""
    notices: tuple[str, ...] = ()
    """What a person should know of the images."""

    def to_record(self) -> dict[str, Any]:
        """Return everything as JSON has it, each class with its figures by its name."""
        images, recalls = self.confusion.images_of.tolist(), metrics.recall(self.confusion).tolist()
        precisions, f1 = metrics.precision(self.confusion).tolist(), metrics.f1(self.confusion).tolist()
        trained = self.class_counts or [None] * len(self.classes)
        per_class = zip(trained, images, recalls, precisions, f1, strict=True)
        keys = ("training_images", "images", "recall", "precision", "f1")
        return {
            "images": self.confusion.images,
            "loss": self.loss,
            "scores": dict(self.scores),
            "classes": {
                name: dict(zip(keys, row, strict=True))
                for name, row in zip(self.classes, per_class, strict=True)
            },
            "confusion": self.confusion.to_record(),
            "notices": list(self.notices),
        }
