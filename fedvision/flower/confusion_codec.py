"""How confusion counts travel, and what is checked of those that arrive.

As a matrix [C, C], or as the pairs of classes that occur [2, P], whichever is smaller: with thousands of
classes a matrix is many times the model. Masked counts are always a matrix, since the pairs that a client
names would tell which ones occur.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedvision.flower.internals_message import values
from fedvision.tasks.confusion import ConfusionCounts

MATRIX, PAIRS, CLASSES = "confusion", "confusion-pairs", "classes"
_MOST_CLASSES = 1 << 20
"""Classes of pairs, where the federation's number of classes is not known."""


def encode(counted: ConfusionCounts) -> tuple[dict[str, ArrayRecord], dict[str, int]]:
    """Return the counts as one record of tensors by its name, and the metrics that belong to it."""
    if counted.num_classes**2 <= 2 * len(counted.pairs):
        return {MATRIX: ArrayRecord([counted.matrix()])}, {}
    pairs = np.stack([counted.pairs, counted.counts])
    return {PAIRS: ArrayRecord([pairs])}, {CLASSES: counted.num_classes}


def decode(content: RecordDict, metrics: Mapping[str, Any]) -> ConfusionCounts:
    """Return the counts of a content that ``problem`` let through.

    Args:
        content: As it came.
        metrics: Its metrics.
    """
    if (matrix := matrix_of(content)) is not None:
        return ConfusionCounts.from_matrix(matrix)
    pairs, counts = _only(content, PAIRS)
    return ConfusionCounts(num_classes=int(metrics[CLASSES]), pairs=pairs, counts=counts)


def matrix_of(content: RecordDict) -> NDArray[Any] | None:
    """Return a matrix as it came, unchecked; None where there are pairs instead."""
    return _only(content, MATRIX) if MATRIX in values(content) else None


def problem(content: RecordDict, metrics: Mapping[str, Any], classes: int, images: int | None) -> str | None:
    """Return why counts cannot be used; None where they can.

    Pairs are compared with the number of classes before anything is made whose size that number decides.

    Args:
        content: As it came.
        metrics: Its metrics.
        classes: C; 0 where it is not known.
        images: On how many images they rest; None where they are masked, and can be any numbers.

    Raises:
        KeyError: There are none.
        TypeError: A record or number is of another kind.
        ValueError: There is more than one array.
    """
    counts = matrix_of(content)
    if counts is not None:
        wrong = _matrix_problem(counts, classes)
    elif images is None:
        return "its masked confusion counts are no matrix"
    else:
        counts = _only(content, PAIRS)
        wrong = _pairs_problem(counts, int(metrics[CLASSES]), classes)
    if wrong or images is None:
        return wrong
    told = counts if MATRIX in values(content) else counts[1]
    return None if are_counts(told, images) else f"its confusion counts are not those of {images} images"


def are_counts(numbers: NDArray[np.int64], images: int) -> bool:
    """Tell whether numbers [...] are counts of so many images: none is negative, and none is missing."""
    # In Python's numbers: those that are no counts could wrap around.
    return bool((numbers >= 0).all()) and sum(numbers[numbers != 0].tolist()) == images


def _matrix_problem(matrix: NDArray[Any], classes: int) -> str | None:
    shape = list(matrix.shape)
    wanted = [classes or max(shape, default=0)] * 2
    if matrix.dtype != np.int64 or shape != wanted:
        return f"its confusion counts are {matrix.dtype} {shape}, not int64 {wanted}"
    return None


def _pairs_problem(pairs: NDArray[Any], told: int, classes: int) -> str | None:
    if told != classes if classes else not 0 < told <= _MOST_CLASSES:
        return f"its confusion counts are of {told} classes, not of {classes or f'1 to {_MOST_CLASSES}'}"
    if pairs.dtype != np.int64 or pairs.ndim != 2 or len(pairs) != 2:
        return f"its pairs of classes are {pairs.dtype} {list(pairs.shape)}, not int64 [2, P]"
    inside = not pairs.size or 0 <= pairs[0].min() <= pairs[0].max() < told**2
    if not inside or (pairs[0, 1:] <= pairs[0, :-1]).any():
        return f"its pairs of classes are not rising numbers >= 0 and < {told**2}"
    return None if (pairs[1] > 0).all() else "its confusion counts hold pairs of which there are no images"


def _only(content: RecordDict, name: str) -> NDArray[Any]:
    """Return the only array of a record."""
    record = values(content)[name]
    if not isinstance(record, ArrayRecord):
        raise KeyError(name)
    (array,) = record.values()
    return array.numpy()
