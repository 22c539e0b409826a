"""Columns -> what a network reads beside the pixels, once, where the data is read.

What a cell may be is decided here. An empty cell and what programs write for a missing value (``nan``,
``NA``) are absent; whatever else is no number, no known category or half a vector is refused, with the name
of the image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.duplicates import image_name
from fedvision.data.naming import composed, in_order, is_missing
from fedvision.data.paths import expand
from fedvision.data.sources.npz_archive import Archive
from fedvision.data.text import encode_texts
from fedvision.errors import ConfigError, DataError, nearest
from fedvision.inputs import InputConfig, places, width

Configs = Mapping[str, InputConfig]


class CellError(DataError):
    """A column or cell is not as ``[model.inputs]`` needs it; its text may hold what is in the cell.

    Args:
        key: The input's, ``"model.inputs.age"``.
        problem: What is wrong, and where.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key


@dataclass(frozen=True)
class _Cells:
    """The columns of N images."""

    columns: Mapping[str, Sequence[Any] | NDArray[Any]]
    count: int
    where: Callable[[int], str]
    """Name of an image by its number, for errors."""

    def texts(self, name: str, key: str) -> list[str]:
        """Return a column's cells as text, ``""`` where a cell is absent.

        Raises:
            CellError: There is no such column.
        """
        if name not in self.columns:
            hint = nearest(name, self.columns) or "; there are none"
            raise CellError(key, f"there is no column {name!r}{hint}; let the input's column name another")
        return [str(cell).strip() for cell in self.columns[name]]

    def refuse(self, key: str, row: int, problem: str) -> NoReturn:
        """Refuse a cell."""
        raise CellError(key, f"{self.where(row)} {problem}")


def settled(inputs: Configs, dataset: Dataset) -> dict[str, InputConfig]:
    """Return inputs with what the data settles: categories that are left out, columns by pattern, sizes.

    Settled inputs stay as they are.

    Raises:
        DataError: The data has no such column, or a file cannot be read.
    """
    parts = [dataset.train, *([dataset.test] if dataset.test is not None else [])]
    return {name: _settled(f"model.inputs.{name}", name, one, parts) for name, one in inputs.items()}


def check_settled(inputs: Configs) -> None:
    """Refuse inputs that only a data set settles, where clients' columns are on their machines.

    Raises:
        ConfigError: There is one.
    """
    for name, one in inputs.items():
        key = f"model.inputs.{name}"
        if one.kind == "category" and not one.categories:
            raise ConfigError(f"{key}.categories is missing: clients across machines must agree on them")
        if any(_is_pattern(column) for column in one.columns):
            raise ConfigError(
                f"{key}.columns: write out the columns; clients across machines must agree on them"
            )
        if one.file:
            raise ConfigError(
                f"{key}.file: machines far apart have no file in common; let columns hold the vectors"
            )


def with_inputs(dataset: Dataset, inputs: Configs) -> Dataset:
    """Return a data set whose images have what a network with these inputs reads beside the pixels.

    Raises:
        CellError: A column is missing, or a cell is not as it must be.
    """
    if not inputs:
        return dataset
    test = dataset.test
    return replace(
        dataset, train=encoded(dataset.train, inputs), test=None if test is None else encoded(test, inputs)
    )


def encoded(images: ImageSet, inputs: Configs) -> ImageSet:
    """Return images with their rows of further inputs; errors as of ``with_inputs``."""
    if not inputs:
        return images
    cells = _Cells(images.columns, len(images), lambda row: image_name(images, row))
    return replace(images, further=_rows(cells, inputs))


def encode_columns(
    columns: Mapping[str, Sequence[Any]], names: Sequence[str], inputs: Configs
) -> NDArray[np.float32]:
    """Return the rows, float32 [N, W], of images that have columns and no labels.

    Args:
        columns: Cells [N] by column. All columns of an input may be missing: then it is absent.
        names: The images' [N], for errors.
        inputs: Settled.

    Raises:
        CellError: A cell is not as it must be.
    """
    there = {name: one for name, one in inputs.items() if any(c in columns for c in _columns(name, one))}
    rows = absent(len(names), inputs)
    if there:
        found = _rows(_Cells(columns, len(names), lambda row: names[row]), there)
        at = {name: place for name, _, place in places(there)}
        for name, _, place in places(inputs):
            if name in at:
                rows[:, place] = found[:, at[name]]
    return rows


def absent(images: int, inputs: Configs) -> NDArray[np.float32]:
    """Return the rows float32 [N, W] of images of which nothing but the pixels is known."""
    return np.full((images, width(inputs)), np.nan, np.float32)


def _rows(cells: _Cells, inputs: Configs) -> NDArray[np.float32]:
    rows = absent(cells.count, inputs)
    if cells.count:
        for name, one, place in places(inputs):
            rows[:, place] = _ENCODERS[one.kind](cells, f"model.inputs.{name}", name, one)
    return rows


def _columns(name: str, one: InputConfig) -> tuple[str, ...]:
    return one.columns or (one.column or name,)


def _numbers(cells: _Cells, key: str, name: str, one: InputConfig) -> NDArray[np.float32]:
    column = one.column or name
    values = np.array([_number(cells, key, column, row, t) for row, t in enumerate(cells.texts(column, key))])
    return ((values - one.mean) / one.deviation)[:, None].astype(np.float32)


def _number(cells: _Cells, key: str, column: str, row: int, text: str) -> float:
    if is_missing(text):
        return np.nan
    try:
        value = float(text)
    except ValueError:
        value = np.inf
    # float() reads "1_0" too, which nobody means as ten; and float32 ends at 3e38.
    if not abs(value) < 1e38 or "_" in text:
        cells.refuse(key, row, f"has {text!r} in column {column!r}, which is no finite number")
    return value


def _categories(cells: _Cells, key: str, name: str, one: InputConfig) -> NDArray[np.float32]:
    column, number = one.column or name, {composed(value): code for code, value in enumerate(one.categories)}
    codes = np.full((cells.count, 1), np.nan, np.float32)
    for row, text in enumerate(cells.texts(column, key)):
        value = composed(text)
        if value in number:
            codes[row] = number[value]
        elif not is_missing(value):
            cells.refuse(
                key,
                row,
                f"has {text!r} in column {column!r}, which is not in categories{nearest(value, number)}",
            )
    return codes


def _texts(cells: _Cells, key: str, name: str, one: InputConfig) -> NDArray[np.float32]:
    texts = cells.texts(one.column or name, key)
    return encode_texts(["" if is_missing(text) else text for text in texts], one.words, one.buckets)


def _vectors(cells: _Cells, key: str, name: str, one: InputConfig) -> NDArray[np.float32]:
    if one.file:
        return _of_file(cells, key, name, one)
    rows = np.array(
        [
            [_number(cells, key, column, row, t) for row, t in enumerate(cells.texts(column, key))]
            for column in one.columns
        ]
    ).T
    missing = np.isnan(rows)
    for row in np.flatnonzero(missing.any(1) & ~missing.all(1)).tolist():
        some = one.columns[int(missing[row].argmax())]
        cells.refuse(
            key, row, f"has a part of a vector: column {some!r} is empty; leave all columns empty, or none"
        )
    return rows.astype(np.float32)


def _of_file(cells: _Cells, key: str, name: str, one: InputConfig) -> NDArray[np.float32]:
    keys, vectors = _read_vectors(key, one)
    number = {composed(str(found)): row for row, found in enumerate(keys.tolist())}
    rows = np.full((cells.count, vectors.shape[1]), np.nan, np.float32)
    for row, text in enumerate(cells.texts(one.column or name, key)):
        if (at := number.get(composed(text))) is not None:
            rows[row] = vectors[at]
    return rows


def _read_vectors(key: str, one: InputConfig) -> tuple[NDArray[Any], NDArray[np.float32]]:
    archive = Archive(expand(one.file))
    keys, vectors = archive.read("keys"), np.asarray(archive.read("vectors"))
    good = keys.ndim == 1 and vectors.ndim == 2 and len(keys) == len(vectors) and vectors.dtype.kind == "f"
    if not good or not vectors.shape[1] or not np.isfinite(vectors).all():
        raise DataError(f"{key}: {archive.path} must have texts keys [M] and finite float vectors [M, D]")
    if len(set(keys.tolist())) < len(keys):
        raise DataError(f"{key}: {archive.path} has a key twice; keep one")
    if one.size and vectors.shape[1] != one.size:
        raise DataError(f"{key}: {archive.path} has vectors of {vectors.shape[1]} numbers, not of {one.size}")
    return keys, vectors.astype(np.float32)


_ENCODERS: Mapping[str, Callable[[_Cells, str, str, InputConfig], NDArray[np.float32]]] = {
    "number": _numbers,
    "category": _categories,
    "text": _texts,
    "vector": _vectors,
}


def _settled(key: str, name: str, one: InputConfig, parts: Sequence[ImageSet]) -> InputConfig:
    if one.kind == "category" and not one.categories:
        every = [_Cells(part.columns, len(part), str).texts(one.column or name, key) for part in parts]
        found = in_order(composed(text) for texts in every for text in texts if not is_missing(text))
        if not found:
            raise CellError(key, f"all cells of column {one.column or name!r} are empty; leave the input out")
        return replace(one, categories=tuple(found))
    if any(_is_pattern(column) for column in one.columns):
        return replace(one, columns=_matching(key, one.columns, list(parts[0].columns)))
    if one.file and not one.size:
        return replace(one, size=_read_vectors(key, one)[1].shape[1])
    return one


def _is_pattern(column: str) -> bool:
    return any(letter in column for letter in "*?[")


def _matching(key: str, patterns: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    found = [c for pattern in patterns for c in sorted(known, key=_by_numbers) if fnmatchcase(c, pattern)]
    if not found or len(set(found)) < len(found):
        there = ", ".join(sorted(known)) or "none"
        raise CellError(key, f"columns = {list(patterns)} must match columns, each once; there are: {there}")
    return tuple(found)


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Return a key by which ``emb_9`` comes before ``emb_10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
