"""How a measurement's counts travel, and what is checked of those that arrive.

As tables [T, R, S], or as the cells that occur [2, P], whichever is smaller: a confusion matrix over
thousands of classes is many times the model. Masked counts are always tables, since the cells that a client
names would reveal which ones occur, and have no rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedvision.flower.internals_message import values
from fedvision.tasks.stats import MetricStats, Shape, StatsForm, no_rows

TABLES, CELLS, SHAPE, ROWS = "counts", "counts-cells", "counts-shape", "counts-rows"
_LONGEST = 1 << 20
"""Tables, rows or columns of cells, where the federation's number of classes is not known."""
_MOST = 1 << 40
"""Cells in all, likewise."""


def encode(counted: MetricStats) -> tuple[dict[str, ArrayRecord], dict[str, list[int]]]:
    """Return the counts as one record of tensors by its name, and the metrics that belong to it."""
    rows = counted.rows
    more = {ROWS: ArrayRecord([rows])} if rows is not None and rows.shape[1] else {}
    if math.prod(counted.shape) <= 2 * len(counted.cells):
        return {TABLES: ArrayRecord([counted.tables()]), **more}, {}
    cells = np.stack([counted.cells, counted.counts])
    return {CELLS: ArrayRecord([cells]), **more}, {SHAPE: list(counted.shape)}


def decode(content: RecordDict, metrics: Mapping[str, Any]) -> MetricStats:
    """Return the counts of a content that ``problem`` let through.

    Args:
        content: As it came.
        metrics: Its metrics.
    """
    rows = _only(content, ROWS) if ROWS in values(content) else no_rows()
    if (tables := tables_of(content)) is not None:
        return replace(MetricStats.from_tables(tables), rows=rows)
    cells, counts = _only(content, CELLS)
    return MetricStats(shape=_shape(metrics), cells=cells, counts=counts, rows=rows)


def tables_of(content: RecordDict) -> NDArray[Any] | None:
    """Return tables as they came, unchecked; None where there are cells instead."""
    return _only(content, TABLES) if TABLES in values(content) else None


def problem(
    content: RecordDict, metrics: Mapping[str, Any], form: StatsForm, images: int | None
) -> str | None:
    """Return why counts cannot be used; None where they can.

    Cells are compared with the shape before anything is made whose size that decides.

    Args:
        content: As it came.
        metrics: Its metrics.
        form: What they must look like.
        images: On how many images they rest; None where they are masked, and can be any numbers.

    Raises:
        KeyError: There are none.
        TypeError: A record or number is of another kind.
        ValueError: There is more than one array, or the shape is no three numbers.
    """
    return _counts_problem(content, metrics, form.shape_for, images) or _rows_problem(
        content, metrics, form, masked=images is None
    )


def _rows_problem(
    content: RecordDict, metrics: Mapping[str, Any], form: StatsForm, *, masked: bool
) -> str | None:
    """Return what is wrong with the rows of a content whose counts are in order."""
    if masked:
        return "it has rows beside masked counts" if ROWS in values(content) else None
    stats = decode(content, metrics)
    rows = stats.rows
    assert rows is not None
    if not stats.examples and not len(rows):
        return None
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != form.row_width:
        return f"its rows are {rows.dtype} {list(rows.shape)}, not int64 [M, {form.row_width}]"
    if len(rows) and (rows[0, 0] < 0 or rows[-1, 0] > _MOST or (np.diff(rows[:, 0]) < 0).any()):
        return "its rows do not begin with rising numbers of images"
    return form.problem(stats)


def _counts_problem(
    content: RecordDict, metrics: Mapping[str, Any], shape_for: Callable[[Shape], Shape], images: int | None
) -> str | None:
    tables = tables_of(content)
    if tables is not None:
        shape = tables.shape
        wanted = shape_for(shape if len(shape) == 3 else (0, 0, 0))
        if tables.dtype != np.int64 or shape != wanted:
            return f"its counts are {tables.dtype} {list(shape)}, not int64 {list(wanted)}"
        return None if images is None or are_counts(tables, images) else _not_those_of(images)
    if images is None:
        return "its masked counts are no tables"
    cells, declared = _only(content, CELLS), _shape(metrics)
    if wrong := _cells_problem(cells, declared, shape_for(declared)):
        return wrong
    rows = math.prod(declared[1:])
    per_table = (
        [cells[1][cells[0] // rows == table] for table in range(declared[0])] if images else [cells[1]]
    )
    return None if all(_adds_up(part, images) for part in per_table) else _not_those_of(images)


def are_counts(tables: NDArray[np.int64], images: int) -> bool:
    """Return whether each table of [T, ...] counts so many images: none is negative, and none is missing."""
    return all(_adds_up(table, images) for table in tables)


def is_int64(value: object) -> bool:
    """Return whether a value of a record is a whole number of 64 bits, signed."""
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _adds_up(numbers: NDArray[np.int64], images: int) -> bool:
    # In Python's numbers: those that are no counts could wrap around.
    return bool((numbers >= 0).all()) and sum(numbers[numbers != 0].tolist()) == images


def _not_those_of(images: int) -> str:
    return f"its counts are not those of {images} images"


def _cells_problem(cells: NDArray[Any], declared: Shape, wanted: Shape) -> str | None:
    if declared != wanted:
        return f"its counts are of the shape {list(declared)}, not {list(wanted)}"
    if not all(0 < number <= _LONGEST for number in declared) or math.prod(declared) > _MOST:
        return f"its counts are of the shape {list(declared)}, not of up to {_LONGEST} classes"
    if cells.dtype != np.int64 or cells.ndim != 2 or len(cells) != 2:
        return f"its cells are {cells.dtype} {list(cells.shape)}, not int64 [2, P]"
    size = math.prod(declared)
    inside = not cells.size or 0 <= cells[0].min() <= cells[0].max() < size
    if not inside or (cells[0, 1:] <= cells[0, :-1]).any():
        return f"its cells are not rising numbers >= 0 and < {size}"
    return None if (cells[1] > 0).all() else "its counts hold cells in which there are no images"


def _shape(metrics: Mapping[str, Any]) -> Shape:
    tables, rows, columns = map(int, metrics[SHAPE])
    return tables, rows, columns


def _only(content: RecordDict, name: str) -> NDArray[Any]:
    """Return the only array of a record."""
    record = values(content)[name]
    if not isinstance(record, ArrayRecord):
        raise KeyError(name)
    (array,) = record.values()
    return array.numpy()
