"""Sums from which metrics are made: tables of counts, of which only the cells that occur are held.

They form a commutative monoid: counts over batches, clients and processes are added exactly, in any order,
and a ratio is made of the sum alone. What is sent, masked, checked and summed depends on the tables alone;
what their cells mean is the task's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Shape: TypeAlias = "tuple[int, int, int]"
"""(T, R, S): T tables of R rows and S columns, each of which counts every example once."""


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

    @classmethod
    def from_cells(cls, cells: NDArray[np.int64], shape: Shape) -> Self:
        """Count examples.

        Args:
            cells: int64 [T N], in any order: the cells in which the tables count them.
            shape: (T, R, S).
        """
        found, counts = np.unique(cells, return_counts=True)
        return cls(shape=shape, cells=found.astype(np.int64), counts=counts.astype(np.int64))

    @classmethod
    def from_tables(cls, tables: NDArray[np.int64]) -> Self:
        """Return the counts of tables [T, R, S], none of them negative."""
        flat = np.asarray(tables).ravel()
        cells = np.flatnonzero(flat).astype(np.int64)
        tables_, rows, columns = np.shape(tables)
        return cls(shape=(tables_, rows, columns), cells=cells, counts=flat[cells].astype(np.int64))

    @classmethod
    def empty(cls, shape: Shape) -> Self:
        """Return the counts of no examples."""
        return cls(shape=shape, cells=np.empty(0, np.int64), counts=np.empty(0, np.int64))

    @classmethod
    def of(cls, stats: MetricStats) -> Self:
        """Return the same counts as those of this kind."""
        return cls(shape=stats.shape, cells=stats.cells, counts=stats.counts)

    @classmethod
    def total(cls, parts: Sequence[MetricStats]) -> Self:
        """Return the sum of several counts, at least one.

        Raises:
            ValueError: They are of different shapes.
        """
        shapes = sorted({part.shape for part in parts})
        if len(shapes) != 1:
            raise ValueError(f"counts in tables {', '.join(map(str, shapes))} cannot be summed")
        cells, places = np.unique(np.concatenate([part.cells for part in parts]), return_inverse=True)
        counts = np.zeros(len(cells), np.int64)
        np.add.at(counts, places, np.concatenate([part.counts for part in parts]))
        return cls(shape=shapes[0], cells=cells, counts=counts)

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
