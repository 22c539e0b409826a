"""A CSV file -> rows; where it is not as expected, the sentence names the key that corrects it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedvision.data.naming import composed
from fedvision.errors import DataError, nearest

_DELIMITERS = ";\t|,"
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_ONE_HOT = frozenset(["0", "1", "0.0", "1.0"])


class Row(NamedTuple):
    """One image's line."""

    line: int
    """Line of the file, from 1; the header is line 1."""
    cells: Mapping[str, str]
    """Column, in NFC -> text, blanks around it removed."""


def read_table(table: Path, delimiter: str, encoding: str, needed: Sequence[tuple[str, str]]) -> list[Row]:
    """Read a CSV file whose first line names its columns.

    Columns without a name are left out where they are empty or the first, as pandas writes its index.

    Args:
        table: The file.
        delimiter: What stands between two cells.
        encoding: As Python calls it.
        needed: Keys of the experiment and the columns that they name.

    Raises:
        ValueError: There is no such encoding.
        DataError: The file cannot be read, is no CSV file, or lacks a column; the sentence names the key that
            mends it.
    """
    try:
        # A byte-order mark is no part of the first column's name.
        with open(table, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [composed(name.strip()) for name in next(reader, [])]
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except LookupError as error:
        raise ValueError(
            f"encoding = {encoding!r}: there is no such encoding; utf-8 and cp1252 are"
        ) from error
    except OSError as error:
        raise DataError(f"{table}: this file cannot be read: {error.strerror}; correct data.path") from error
    except UnicodeError as error:
        raise DataError(
            f"{table}: this is no CSV file in {encoding.upper()}: {error}; {_other(table)}"
        ) from error
    except csv.Error as error:
        raise DataError(f"{table}: this is no CSV file in {encoding.upper()}: {error}") from error
    rows = [_row(cells, header, table, line) for line, cells in lines]
    _check_header(header, [row for _, row in rows], table, needed, delimiter)
    used = [i for i, name in enumerate(header) if name]
    return [Row(line, {header[i]: cells[i] for i in used}) for line, cells in rows]


def one_hot(row: Row, columns: Sequence[str], table: Path) -> str:
    """Return the one column of some that holds 1 in a row.

    Raises:
        DataError: None or several do, or a cell is neither 0 nor 1.
    """
    cells = {name: row.cells[name] for name in columns}
    ones = [name for name, cell in cells.items() if cell in ("1", "1.0")]
    if len(ones) != 1 or not set(cells.values()) <= _ONE_HOT:
        shown = ", ".join(f"{name} = {cell!r}" for name, cell in cells.items() if cell not in ("0", "0.0"))
        raise DataError(
            f"{table}, line {row.line}: exactly one of the columns in data.label must be 1 and the others 0; "
            f"here {shown or 'all are 0'}"
        )
    return ones[0]


def _row(cells: Sequence[str], header: Sequence[str], table: Path, line: int) -> tuple[int, list[str]]:
    texts = [cell.strip() for cell in cells]
    while len(texts) > len(header) and not texts[-1]:
        texts.pop()
    if len(texts) != len(header):
        raise DataError(f"{table}, line {line}: it has {len(texts)} cells, but the header {len(header)}")
    return line, texts


def _check_header(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    table: Path,
    needed: Sequence[tuple[str, str]],
    delimiter: str,
) -> None:
    for key, column in needed:
        if column not in header:
            raise DataError(
                f"{table}: there is no column {column!r}{nearest(column, filter(None, header))}; "
                f"data.{key} names it{_remedy(key, header, rows, delimiter)}"
            )
    named = [name for name in header if name]
    if twice := {name for name in named if named.count(name) > 1}:
        raise DataError(f"{table}: column {sorted(twice)[0]!r} stands there twice; rename one")
    for i, name in enumerate(header):
        if not name and i and any(cells[i] for cells in rows):
            raise DataError(f"{table}: column {i + 1} has no name, but cells; name it in the first line")


def _remedy(key: str, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str) -> str:
    """Return what a missing column may come from."""
    if len(header) == 1 and (
        other := next((c for c in _DELIMITERS if c in header[0] and c != delimiter), "")
    ):
        return f'; the first line is parted by {other!r}: set data.delimiter = "{_escaped(other)}"'
    if key == "label" and len(found := _one_hot_columns(header, rows)) > 1:
        listed = ", ".join(f'"{name}"' for name in found)
        return f"; the labels seem to be one-hot: set data.label = [{listed}]"
    return ""


def _one_hot_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    numbers = range(len(header)) if rows else ()
    return [header[i] for i in numbers if header[i] and {cells[i] for cells in rows} <= _ONE_HOT]


def _other(table: Path) -> str:
    """Return which encoding a file in another one than configured may have."""
    start = table.read_bytes()[:2]
    guess = _BOMS.get(start, "cp1252")
    return f'save it as "CSV UTF-8", or set data.encoding = "{guess}" if it was written so'


def _escaped(text: str) -> str:
    return "\\t" if text == "\t" else text


def columns_of(rows: Sequence[Row], without: Iterable[str]) -> list[str]:
    """Return the columns but some, in the file's order."""
    left_out = set(without)
    return [name for name in rows[0].cells if name not in left_out]
