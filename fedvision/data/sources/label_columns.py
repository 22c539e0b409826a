"""Several labels an image in a CSV file: a column of 0 and 1 for each label, or one that lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedvision.data.naming import composed, is_missing
from fedvision.data.sources.csv_table import Row
from fedvision.data.targets import Targets
from fedvision.errors import DataError

_NO, _YES = ("0", "0.0"), ("1", "1.0")
Given = list[list[str]]
"""The labels of each row."""


def zero_one(rows: Sequence[Row], columns: Sequence[str], table: Path) -> tuple[Given, list[str]]:
    """Return the labels of each row by columns of 0 and 1, and all labels.

    Raises:
        DataError: A cell is neither 0 nor 1.
    """
    for row in rows:
        for name in columns:
            if row.cells[name] not in (*_NO, *_YES):
                raise DataError(
                    f"{table}, line {row.line}: {name} must be 0 or 1, as data.labels names it, not "
                    f"{row.cells[name]!r}"
                )
    named = [composed(name) for name in columns]
    given = [[composed(name) for name in columns if row.cells[name] in _YES] for row in rows]
    return given, named


def parted(rows: Sequence[Row], column: str, separator: str, table: Path) -> tuple[Given, list[str]]:
    """Return the labels of each row by one column that lists them, and all labels that occur, sorted.

    Raises:
        DataError: A label is empty, stands for a missing value, or stands twice in a row.
    """
    given: Given = []
    for row in rows:
        cell = row.cells[column]
        labels = [composed(part.strip()) for part in cell.split(separator)] if cell else []
        for label in labels:
            if not label or is_missing(label) or labels.count(label) > 1:
                raise DataError(
                    f"{table}, line {row.line}: {column} is {cell!r}; its labels must be different names "
                    f"parted by data.label_separator = {separator!r}, and the cell empty where there are none"
                )
        given.append(labels)
    return given, sorted({label for labels in given for label in labels})


def indicators(given: Given, classes: Sequence[str]) -> Targets:
    """Return whether each row has each label, uint8 [N, L]."""
    number = {name: place for place, name in enumerate(classes)}
    found = np.zeros((len(given), len(classes)), np.uint8)
    for row, labels in enumerate(given):
        found[row, [number[label] for label in labels]] = 1
    return found
