"""What a trained model says: its predictions for images, and its scores on labelled ones."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.formatting import percent
from fedvision.tasks.calibration import Calibration
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.intervals import Interval, wilson
from fedvision.tasks.stats import MetricStats


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassPredictions:
    """The predicted class of each of N images."""

    classes: tuple[str, ...]
    """Class names [C]."""
    names: Sequence[str]
    """[N]: an image's file, or the place of it in an array."""
    labels: NDArray[Any]
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

    def table(self) -> Iterator[tuple[str, ...]]:
        """Yield the heading and a row of text for each image, for people."""
        yield "file", "class", "probability"
        yield from ((name, predicted, percent(float(best))) for name, predicted, best in self.rows())

    def to_csv(self) -> str:
        """Return a CSV table: ``file``, ``class``, ``probability``, then ``p(NAME)`` for each class."""
        # The shortest text that reads back as the same float32.
        found = ([name, predicted, str(best)] for name, predicted, best in self.rows())
        return self._csv(["file", "class", "probability"], found)

    def to_jsonl(self) -> str:
        """Return a line of JSON for each image, then for each file that cannot be read.

        ``{"file", "class", "probability", "probabilities": {NAME: p}}``, or ``{"file", "error"}``.
        """
        found = (
            {"file": name, "class": predicted, "probability": _shortest(best)}
            for name, predicted, best in self.rows()
        )
        return self._jsonl(found)

    def _jsonl(self, found: Iterator[dict[str, Any]]) -> str:
        lines = [
            {**one, "probabilities": dict(zip(self.classes, map(_shortest, row), strict=True))}
            for one, row in zip(found, self.probabilities, strict=True)
        ]
        lines += [{"file": name, "error": why} for name, why in self.unreadable.items()]
        # Names of files need not be Unicode: what is not is escaped.
        return "".join(json.dumps(line) + "\n" for line in lines)

    def _csv(self, heading: Sequence[str], found: Iterator[list[str]]) -> str:
        page = io.StringIO()
        table = csv.writer(page, lineterminator="\n")
        table.writerow([*heading, *(f"p({name})" for name in self.classes)])
        for cells, row in zip(found, self.probabilities, strict=True):
            table.writerow([*cells, *map(str, row)])
        return page.getvalue()


def _shortest(value: np.float32) -> float:
    """Return the number whose text is the shortest that reads back as the same float32."""
    return float(str(value))


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelPredictions(ClassPredictions):
    """The predicted labels of each of N images: ``labels`` is uint8 [N, L] of 0 and 1.

    An image has a label where its probability is 1/2 or more; ``probabilities`` [N, L] are each label's own.
    """

    @property
    def separator(self) -> str:
        """What stands between labels in ``to_csv``: the first of ``| ; /`` that is in no label's name."""
        free = (one for one in "|;/" if not any(one in name for name in self.classes))
        return next(free, "\n")

    def of(self) -> Iterator[tuple[str, list[int]]]:
        """Yield each image's name and the numbers of its labels, which may be none."""
        for name, row in zip(self.names, self.labels, strict=True):
            yield name, np.flatnonzero(row).tolist()

    def table(self) -> Iterator[tuple[str, ...]]:
        """Yield the heading and a row of text for each image, for people."""
        yield "file", "labels"
        for (name, labels), row in zip(self.of(), self.probabilities, strict=True):
            probabilities = ", ".join(
                f"{self.classes[label]} {percent(float(row[label]))}" for label in labels
            )
            yield name, probabilities or "none"

    def to_jsonl(self) -> str:
        """Return lines of JSON: ``{"file", "labels": [NAME], "probabilities": {NAME: p}}``."""
        found = ({"file": name, "labels": [self.classes[c] for c in labels]} for name, labels in self.of())
        return self._jsonl(found)

    def to_csv(self) -> str:
        """Return a CSV table: ``file``, ``labels`` with ``separator`` between, ``p(NAME)`` for each label."""
        found = ([name, self.separator.join(self.classes[c] for c in labels)] for name, labels in self.of())
        return self._csv(["file", "labels"], found)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassScores:
    """A model's scores on N labelled images."""

    classes: tuple[str, ...]
    """Class names [C]."""
    class_counts: tuple[int, ...] | None
    """Training images, or pixels, of each class [C], by which classes are frequent or rare; None where
    unknown."""
    stats: MetricStats
    """What was counted."""
    by_class: Mapping[str, NDArray[Any]]
    """Figures of each class [C] by name, such as ``recall``; NaN where no image tells. Empty for a task that
    has none."""
    loss: float
    """Mean of the task's own loss, nats; NaN without images."""
    scores: Mapping[str, float]
    """Shares of 1 by name, as every run reports them; NaN where no image contributes."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """The 95 % confidence intervals of some of the scores, by their names."""
    calibration: Calibration | None = None
    """What the probabilities tell; None where images have no class or the task does not say."""
    several_labels: bool = False
    """Whether an image may have several labels, so that nothing is taken for something else."""
    counted: str = "image"
    """What was counted; pixels are no independent trials, so their shares have no intervals."""
    examples: int
    """How many of them were measured."""
    notices: tuple[str, ...] = ()
    """What a person should know of the images."""

    @property
    def confusable(self) -> bool:
        """Whether images were counted by true and predicted class."""
        return (
            bool(self.by_class) and not self.several_labels and self.counted == "image" and not self.of_boxes
        )

    @property
    def of_boxes(self) -> bool:
        """Whether boxes were found in images."""
        return "boxes" in self.by_class

    @property
    def confusion(self) -> ConfusionCounts:
        """Images by true and predicted class.

        Raises:
            ValueError: The task counts something else.
        """
        if not self.confusable:
            raise ValueError("the task of these scores does not count images by true and predicted class")
        return ConfusionCounts.of(self.stats)

    def _recall_ends(self) -> tuple[list[float], list[float]]:
        """Return the ends of the intervals of recalls, each [C]."""
        right, images = (
            (self.by_class["true_positives"], self.by_class["positives"])
            if self.several_labels
            else (self.confusion.right_of, self.confusion.images_of)
        )
        low, high = wilson(right, images)
        return low.tolist(), high.tolist()

    def to_record(self) -> dict[str, Any]:
        """Return everything as JSON has it, each class with its figures by its name."""
        trained = "boxes" if self.of_boxes else f"{self.counted}s"
        columns = {f"training_{trained}": self.class_counts or [None] * len(self.classes)} | {
            name: values.tolist() for name, values in self.by_class.items()
        }
        if self.by_class and self.counted == "image" and not self.of_boxes:
            columns["recall_interval"] = [list(ends) for ends in zip(*self._recall_ends(), strict=True)]
        if self.calibration:
            columns |= {name: values.tolist() for name, values in self.calibration.by_class().items()}
        rows = zip(*columns.values(), strict=True)
        return {
            f"{self.counted}s": self.examples,
            "loss": self.loss,
            "scores": dict(self.scores),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            **({"reliability": self.calibration.reliability.to_record()} if self.calibration else {}),
            "classes": {
                name: dict(zip(columns, row, strict=True))
                for name, row in zip(self.classes, rows, strict=True)
            },
            **({"confusion": self.confusion.to_record()} if self.confusable else {}),
            "notices": list(self.notices),
        }
