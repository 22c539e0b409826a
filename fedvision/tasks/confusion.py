"""Confusion counts that hold only the pairs of classes that occur: their size follows images, not classes.

A matrix over 10,000 classes has a hundred million cells, of which N images fill N at most. Sums over clients
and the totals from which every metric is made are exact in both forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.tasks.stats import MetricStats, Shape

MATRIX_CLASSES = 100
"""Up to so many classes, a record holds counts as a matrix; its form must not change from round to round."""


class ConfusionCounts(MetricStats):
    """How many images of each true class got each predicted one: one table, rows true, columns predicted."""

    @classmethod
    def from_predictions(
        cls, labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int
    ) -> ConfusionCounts:
        """Count predictions.

        Args:
            labels: True classes [N], each >= 0 and < C.
            predicted: Predicted classes [N], likewise.
            num_classes: C.

        Raises:
            ValueError: The arrays differ in shape or hold a number that is no class.
        """
        if labels.shape != predicted.shape or labels.ndim != 1:
            shapes = f"{list(labels.shape)} and {list(predicted.shape)}"
            raise ValueError(f"labels and predictions must both be [N], not {shapes}")
        for name, values in (("labels", labels), ("predictions", predicted)):
            if values.size and not 0 <= values.min() <= values.max() < num_classes:
                found = f"{values.min()} to {values.max()}"
                raise ValueError(f"{name} must be >= 0 and < {num_classes}, not {found}")
        return cls.from_cells(labels.astype(np.int64) * num_classes + predicted, square(num_classes))

    @classmethod
    def from_matrix(cls, matrix: NDArray[np.int64]) -> ConfusionCounts:
        """Return the counts of a matrix [C, C], rows true, columns predicted.

        Raises:
            ValueError: It is not square, or a count is negative.
        """
        cells = np.asarray(matrix)
        if cells.ndim != 2 or cells.shape[0] != cells.shape[1]:
            raise ValueError(f"confusion counts must be [C, C], not {list(cells.shape)}")
        if (cells < 0).any():
            raise ValueError(f"confusion counts must be >= 0, not {cells.min()}")
        return cls.from_tables(cells[None])

    @classmethod
    def none(cls, num_classes: int) -> ConfusionCounts:
        """Return the counts of no images."""
        return cls.empty(square(num_classes))

    @property
    def num_classes(self) -> int:
        """C."""
        return self.shape[1]

    @property
    def true(self) -> NDArray[np.int64]:
        """True class of each pair of classes that occurs [P]."""
        return self.cells // max(1, self.num_classes)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Predicted class of each of them [P]."""
        return self.cells % max(1, self.num_classes)

    @property
    def images_of(self) -> NDArray[np.int64]:
        """Images of each true class [C]."""
        return self._spread(self.true, self.counts)

    @property
    def predictions_of(self) -> NDArray[np.int64]:
        """Images that were named each class [C]."""
        return self._spread(self.predicted, self.counts)

    @property
    def right_of(self) -> NDArray[np.int64]:
        """Images of each class that were named rightly [C]."""
        right = self.true == self.predicted
        return self._spread(self.true[right], self.counts[right])

    def _spread(self, classes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.zeros(self.num_classes, np.int64)
        np.add.at(found, classes, counts)
        return found

    def matrix(self) -> NDArray[np.int64]:
        """Return the counts as a matrix [C, C], which takes 8 C^2 bytes: rows true, columns predicted."""
        matrix: NDArray[np.int64] = self.tables()[0]
        return matrix

    def to_record(self) -> list[list[int]] | dict[str, Any]:
        """Return the counts as they stand in ``rounds.jsonl``.

        A matrix up to ``MATRIX_CLASSES`` classes, else ``{"classes": C, "pairs": [[true, predicted, images],
        ...]}``.
        """
        if self.num_classes <= MATRIX_CLASSES:
            return self.matrix().tolist()  # type: ignore[no-any-return]
        rows = np.stack([self.true, self.predicted, self.counts], axis=1)
        return {"classes": self.num_classes, "pairs": rows.tolist()}

    @classmethod
    def from_record(cls, record: Sequence[Sequence[int]] | Mapping[str, Any] | None) -> ConfusionCounts:
        """Read what ``to_record`` wrote; of nothing, the counts over no classes."""
        if not isinstance(record, Mapping):
            return cls.from_matrix(np.array(record, np.int64)) if record else cls.none(0)
        classes = int(record["classes"])
        true, predicted, counts = np.array(record["pairs"], np.int64).reshape(-1, 3).T
        return cls(shape=square(classes), cells=true * classes + predicted, counts=counts)


def square(num_classes: int) -> Shape:
    """Return the shape of confusion counts over C classes."""
    return 1, num_classes, num_classes
