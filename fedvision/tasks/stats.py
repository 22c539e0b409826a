"""Sums from which metrics are made: tables of counts, of which only the cells that occur are held, and rows.

Counts over batches, clients and processes are added exactly, in any order, and a ratio is made of the sum
alone. A metric that no sums of fixed size give, such as an average precision over all detections by their
scores, is made of rows, which are put one set after the other: images of earlier parts first. Rows tell of
single images, so masks have none and a sum of masked counts has none. What is sent, masked, checked and
summed depends on the form alone; what cells and rows mean is the task's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = "NDArray[np.int64]"
"""int64 [M, W], by image: the first number of each is the image's, from 0 and rising."""
Shape: TypeAlias = "tuple[int, int, int]"
"""(T, R, S): T tables of R rows and S columns, each of which counts every example once."""


def no_rows() -> Rows:
    """Return the rows of a task that has none."""
    return np.empty((0, 0), np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricStats:
    """Counts of N examples in T tables [R, S]; every table counts each of them in exactly one of its cells.

    An example is an image, or a pixel where the task is about pixels.
    """

    shape: Shape
    """(T, R, S)."""
    cells: NDArray[np.int64]
    """int64 [P], rising: (table x R + row) x S + column of every cell that is not 0."""
    counts: NDArray[np.int64]
    """int64 [P], > 0: examples in each of these cells."""
    rows: Rows | None = field(default_factory=no_rows)
    """What is known of single images; None where it is not told, as behind masks."""

    @classmethod
    def from_cells(cls, cells: NDArray[np.int64], shape: Shape, rows: Rows | None = None) -> Self:
        """Count examples.

        Args:
            cells: int64 [T N], in any order: the cells in which the tables count them.
            shape: (T, R, S).
            rows: [M, W]; None where the task has none.
        """
        size = math.prod(shape)
        if len(cells) < size:
            found, counts = np.unique(cells, return_counts=True)
        else:  # of many pixels: to sort them would take longer than to go through all cells of the tables
            every = np.bincount(cells, minlength=size)
            found = np.flatnonzero(every)
            counts = every[found]
        return cls(
            shape=shape,
            cells=found.astype(np.int64),
            counts=counts.astype(np.int64),
            rows=no_rows() if rows is None else rows,
        )

    @classmethod
    def from_tables(cls, tables: NDArray[np.int64], *, masked: bool = False) -> Self:
        """Return the counts of tables [T, R, S], none of them negative.

        Args:
            tables: The counts.
            masked: Whether masks were on them, so that no rows are known.
        """
        flat = np.asarray(tables).ravel()
        cells = np.flatnonzero(flat).astype(np.int64)
        tables_, rows, columns = np.shape(tables)
        counts = flat[cells].astype(np.int64)
        known = None if masked else no_rows()
        return cls(shape=(tables_, rows, columns), cells=cells, counts=counts, rows=known)

    @classmethod
    def empty(cls, shape: Shape) -> Self:
        """Return the counts of no examples."""
        return cls(shape=shape, cells=np.empty(0, np.int64), counts=np.empty(0, np.int64))

    @classmethod
    def of(cls, stats: MetricStats) -> Self:
        """Return the same counts as those of this kind."""
        return cls(shape=stats.shape, cells=stats.cells, counts=stats.counts, rows=stats.rows)

    @classmethod
    def total(cls, parts: Sequence[MetricStats]) -> Self:
        """Return the sum of several counts, at least one, images in the order of the parts.

        Raises:
            ValueError: They are of different shapes.
        """
        shapes = sorted({part.shape for part in parts})
        if len(shapes) != 1:
            raise ValueError(f"counts in tables {', '.join(map(str, shapes))} cannot be summed")
        cells, places = np.unique(np.concatenate([part.cells for part in parts]), return_inverse=True)
        counts = np.zeros(len(cells), np.int64)
        np.add.at(counts, places, np.concatenate([part.counts for part in parts]))
        return cls(shape=shapes[0], cells=cells, counts=counts, rows=_joined([part.rows for part in parts]))

    def __add__(self, other: Self) -> Self:
        """Return the sum of two counts of one shape."""
        return type(self).total([self, other])

    @property
    def examples(self) -> int:
        """N, the number of examples counted."""
        return int(self.counts.sum()) // max(1, self.shape[0])

    def tables(self) -> NDArray[np.int64]:
        """Return all cells, int64 [T, R, S]: what is masked, and what is sent where most cells occur."""
        flat = np.zeros(math.prod(self.shape), np.int64)
        flat[self.cells] = self.counts
        return flat.reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class StatsForm:
    """What counts that somebody sent must look like."""

    shape_for: Callable[[Shape], Shape]
    """The shape (T, R, S) that counts of a shape must have, which is it or another one."""
    row_width: int = 0
    """W; 0 where there are no rows."""
    problem: Callable[[MetricStats], str | None] = lambda stats: None
    """What is wrong with the meaning of counts and rows of this form; None where nothing is."""


def _joined(parts: Sequence[Rows | None]) -> Rows | None:
    """Return rows one set after the other, images numbered on; None where some are not told."""
    told = [rows for rows in parts if rows is not None]
    if len(told) < len(parts):
        return None
    found, images = [], 0
    for rows in told:
        if len(rows):
            own = rows.copy()
            own[:, 0] += images
            images = int(own[-1, 0]) + 1
            found.append(own)
    return np.concatenate(found) if found else max(told, key=lambda rows: rows.shape[1])
