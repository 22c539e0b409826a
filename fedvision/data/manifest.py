"""A CSV file that lists images: one row an image, with its label and whatever else is known of it."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedvision.data.decode import Decoding, named
from fedvision.data.images import Dataset
from fedvision.data.listing import Listing, settle_classes, to_dataset
from fedvision.data.places import expand
from fedvision.errors import DataError, nearest

_PARTS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


class Row(NamedTuple):
    """One image's line."""

    line: int
    """Line of the file, from 1; the header is line 1."""
    cells: Mapping[str, str]
    """Column -> text, blanks around it removed."""


def manifest(
    *,
    path: str,
    size: int,
    root: str = "",
    file: str = "file",
    label: str = "label",
    split: str = "split",
    delimiter: str = ",",
    channels: int = 3,
    fit: str = "crop",
    range: float = 0.0,
    classes: Sequence[str] | None = None,
    validation: float = 0.0,
    val: str = "auto",
    max_unreadable: float = 0.01,
    cache: str = "",
    workers: int = 0,
) -> Dataset:
    """Read the images that a CSV file lists; each is decoded once and kept as pixels in the cache.

    Args:
        path: The CSV file, UTF-8, its first line the columns' names.
        size: Side of the square images in pixels.
        root: Folder that the files' names are relative to; empty is the CSV file's folder.
        file: Column of the files' names.
        label: Column of the labels; every other column goes along as text.
        split: Column that says train, val or test; all rows are for training where it is missing.
        delimiter: What stands between two cells.
        channels: 1 for gray, 3 for RGB.
        fit: ``"crop"`` (shorter side to ``size``, then the centre), ``"stretch"`` or ``"pad"`` (black bars).
        range: The value that is white, such as 1023 for 10 bits in 16-bit files; 0 goes by the file.
        classes: Labels in the order of their numbers; by default those in the file, sorted, by value where
            all are whole numbers.
        validation: Share of the training images, stratified by class, that becomes the test set.
        val: What becomes of val rows: ``"train"``, ``"test"``, ``"drop"``, or ``"auto"``: the test set where
            there is none, else left out.
        max_unreadable: Share of files that may be unreadable; they are left out and named.
        cache: Folder of decoded images; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded.
        workers: Processes that decode; 0 is one per CPU core.

    Returns:
        Images uint8 [N, size, size, channels] as memory maps, and a column [N] for each further column.

    Raises:
        ValueError: A value is out of range.
        DataError: The CSV file or one of its rows is wrong, a file is missing, too many files cannot be read,
            or the cache cannot be used.
    """
    how = Decoding(
        size=size,
        channels=channels,
        fit=fit,
        range=range,
        max_unreadable=max_unreadable,
        cache=cache,
        workers=workers,
    )
    if len(delimiter) != 1:
        raise ValueError(f"delimiter must be one character, not {delimiter!r}")
    table = expand(path)
    # The column "split" may be missing; one that was named may not.
    needed = {"file": file, "label": label} | ({"split": split} if split != "split" else {})
    rows = _rows(table, delimiter, needed)
    folder = expand(root) if root else table.parent
    _check_rows(rows, table, folder, file, label)
    found = sorted({row.cells[label] for row in rows}, key=_numeric if _all_whole(rows, label) else None)
    names = settle_classes(classes, found, str(table))
    number = {name: code for code, name in enumerate(names)}
    others = [name for name in rows[0].cells if name not in (file, label, split)]
    listing = Listing(
        root=folder,
        names=[row.cells[file] for row in rows],
        labels=np.array([number[row.cells[label]] for row in rows], np.int64),
        classes=names,
        parts=np.array([_part(row, table, split) for row in rows]),
        columns={name: np.array([row.cells[name] for row in rows]) for name in others},
    )
    return to_dataset(listing, how, val=val, validation=validation)


def _rows(table: Path, delimiter: str, needed: Mapping[str, str]) -> list[Row]:
    """Read the table; ``needed`` maps a key of ours to the column that it names."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, table, needed)
            return [_row(cells, header, table, reader.line_num) for cells in reader if any(cells)]
    except OSError as error:
        raise DataError(f"{table}: this file cannot be read: {error.strerror}; correct data.path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: this is no CSV file in UTF-8: {error}") from error


def _check_header(header: Sequence[str], table: Path, needed: Mapping[str, str]) -> None:
    for key, column in needed.items():
        if column not in header:
            raise DataError(
                f"{table}: there is no column {column!r}{nearest(column, header)}; data.{key} names it"
            )
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{table}: column {sorted(twice)[0]!r} stands there twice; rename one")


def _row(cells: Sequence[str], header: Sequence[str], table: Path, line: int) -> Row:
    if len(cells) != len(header):
        raise DataError(f"{table}, line {line}: it has {len(cells)} cells, but the header {len(header)}")
    return Row(line, {name: cell.strip() for name, cell in zip(header, cells, strict=True)})


def _check_rows(rows: Sequence[Row], table: Path, folder: Path, file: str, label: str) -> None:
    if not rows:
        raise DataError(f"{table}: there are no rows below the header")
    first: dict[str, int] = {}
    missing = []
    for row in rows:
        for column in (file, label):
            if not row.cells[column]:
                raise DataError(f"{table}, line {row.line}: {column} is empty; fill it in or remove the line")
        name = row.cells[file]
        if (line := first.setdefault(os.path.normpath(name), row.line)) != row.line:
            raise DataError(f"{table}, line {row.line}: {name} stands in line {line} already; keep one")
        if not (folder / name).is_file():
            missing.append(f"{name} (line {row.line})")
    if missing:
        raise DataError(
            f"{table}: {len(missing):,} of {len(rows):,} files are not in {folder}: {named(missing)}; "
            "correct them or data.root"
        )


def _part(row: Row, table: Path, split: str) -> str:
    text = row.cells.get(split, "train").lower()
    if text not in _PARTS:
        raise DataError(f"{table}, line {row.line}: {split} must be train, val or test, not {text!r}")
    return _PARTS[text]


def _all_whole(rows: Sequence[Row], label: str) -> bool:
    return all(row.cells[label].removeprefix("-").isdecimal() for row in rows)


def _numeric(text: str) -> tuple[int, str]:
    return int(text), text
