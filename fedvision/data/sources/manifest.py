"""A CSV file that lists images: one row an image, with its label and whatever else is known of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.decode import named
from fedvision.data.decoding.file_list import Listing, Reading, resolve_classes, to_dataset
from fedvision.data.naming import composed, is_missing
from fedvision.data.paths import expand
from fedvision.data.sources.csv_table import Row, columns_of, one_hot, read_table
from fedvision.data.sources.file_matching import remedy, spelled
from fedvision.data.sources.label_columns import indicators, parted, zero_one
from fedvision.data.sources.mask_code import mask_code, with_classes
from fedvision.data.sources.masked_files import read_masks
from fedvision.data.sources.part_names import part_of
from fedvision.data.targets import Targets
from fedvision.errors import DataError
from fedvision.ranges import check_range
from fedvision.shared_keys import takes_fields_of


@dataclass(frozen=True, kw_only=True)
class ManifestColumns:
    """Which columns hold what.

    Raises:
        ValueError: The keys contradict each other.
    """

    file: str = "file"
    """Column of the files' names."""
    suffix: str = ""
    """What is added to the files' names where they lack it: ``".jpg"``."""
    label: str | Sequence[str] = "label"
    """Column of the labels, or a list of one-hot columns whose names are the classes; every other column
    goes along as text."""
    labels: Sequence[str] = ()
    """Columns of 0 and 1, one for each label, where an image may have several of them."""
    label_separator: str = ""
    """What stands between the labels of an image that may have several, all in the column ``label``; an
    empty cell is an image without any."""
    mask: str = ""
    """Column of the names of mask files, where pixels have classes; it takes the place of labels."""
    split: str = "split"
    """Column that says train, val or test; all rows are for training where it is missing."""

    def __post_init__(self) -> None:
        several = self.labels or self.label_separator
        if self.mask and (self.label != "label" or several):
            raise ValueError(
                "mask names files with the class of each pixel; remove the keys of labels, or mask"
            )
        if self.labels and (self.label != "label" or self.label_separator):
            raise ValueError("labels names columns of 0 and 1; remove label and label_separator, or labels")
        if self.label_separator and not isinstance(self.label, str):
            raise ValueError("label_separator parts the labels in one column; let label name it")

    @property
    def targets(self) -> Sequence[str]:
        """The columns that hold labels, or name masks."""
        if self.mask:
            return [self.mask]
        return list(self.labels) or ([self.label] if isinstance(self.label, str) else list(self.label))

    @property
    def needed(self) -> list[tuple[str, str]]:
        """Key and column of those that must be there."""
        key = "mask" if self.mask else "labels" if self.labels else "label"
        # The column "split" may be missing; one that was named may not.
        named = [("split", self.split)] if self.split != "split" else []
        return [("file", self.file), *((key, column) for column in self.targets), *named]


@takes_fields_of(ManifestColumns, Reading)
def manifest(
    *,
    path: str,
    root: str = "",
    values: Sequence[int] = (),
    ignore: int = 255,
    delimiter: str = ",",
    encoding: str = "utf-8",
    classes: Sequence[str] | None = None,
    names: ManifestColumns,
    reading: Reading,
) -> Dataset:
    """Read the images that a CSV file lists; each is decoded once and kept as pixels in the cache.

    Args:
        path: The CSV file, its first line the columns' names.
        root: Folder that the files' names are relative to; empty is the CSV file's folder.
        values: The value of each class in the masks, such as [0, 255]; by default its number.
        ignore: The value of pixels that are neither trained on nor measured, unless ``values`` has it.
        delimiter: What stands between two cells.
        encoding: Of the file: ``"utf-8"``, ``"cp1252"`` (Excel's on Windows), ``"utf-16"``, ...
        classes: Labels in the order of their numbers; by default those in the file, sorted, by value where
            all are whole numbers.
        names: Which columns hold what.
        reading: What all sources of image files share.

    Returns:
        Images uint8 [N, size, size, channels] as memory maps, and a column [N] for each further column.

    Raises:
        ValueError: A value is out of range.
        DataError: The CSV file or one of its rows is wrong, a file is missing, too many files cannot be read,
            or the cache cannot be used.
    """
    check_range(at_least=0, ignore=ignore)
    if len(delimiter) != 1:
        raise ValueError(f"delimiter must be one character, not {delimiter!r}")
    table = expand(path)
    rows = read_table(table, delimiter, encoding, names.needed)
    folder = expand(root) if root else table.parent
    files = _check_files(rows, table, folder, names.file, names.suffix)
    if names.mask:
        code = mask_code(classes, values, ignore=ignore)
        masks = _check_files(rows, table, folder, names.mask, "")
        targets, _ = read_masks(folder, files, masks, code, reading)
        settled = with_classes(code, targets, str(table))
    elif names.labels or names.label_separator:
        targets, settled = _several_labels(rows, table, names, classes)
    else:
        targets, settled = _one_class(rows, table, names.label, classes)
    others = columns_of(rows, (names.file, names.split, *names.targets))
    listing = Listing(
        root=folder,
        names=files,
        labels=targets,
        classes=settled,
        parts=np.array([_part(row, table, names.split) for row in rows]),
        columns={name: np.array([composed(row.cells[name]) for row in rows]) for name in others},
    )
    return to_dataset(listing, reading)


def _several_labels(
    rows: Sequence[Row], table: Path, names: ManifestColumns, classes: Sequence[str] | None
) -> tuple[Targets, tuple[str, ...]]:
    """Return 0 and 1 for the labels of each row, uint8 [N, L], and the names of all."""
    columns, separator = names.targets, names.label_separator
    given, found = parted(rows, columns[0], separator, table) if separator else zero_one(rows, columns, table)
    named = classes or (None if separator else columns)
    # A client none of whose images has a label knows their names from data.classes alone.
    settled = resolve_classes(named, found or named or (), str(table))
    return indicators(given, settled), settled


def _one_class(
    rows: Sequence[Row], table: Path, label: str | Sequence[str], classes: Sequence[str] | None
) -> tuple[Targets, tuple[str, ...]]:
    """Return the class of each row, int64 [N], and the names of all."""
    labels = _labels(rows, table, label, classes)
    found = sorted(set(labels)) if isinstance(label, str) else label
    settled = resolve_classes(classes if isinstance(label, str) else classes or label, found, str(table))
    number = {name: code for code, name in enumerate(settled)}
    return np.array([number[name] for name in labels], np.int64), settled


def _labels(
    rows: Sequence[Row], table: Path, label: str | Sequence[str], classes: Sequence[str] | None
) -> list[str]:
    """Return each row's label.

    Raises:
        DataError: A label stands for a missing value and ``classes`` does not name it.
    """
    if not isinstance(label, str):
        return [composed(one_hot(row, label, table)) for row in rows]
    for row in rows:
        text = row.cells[label]
        if not text:
            raise DataError(f"{table}, line {row.line}: {label} is empty; fill it in or remove the line")
        if is_missing(text) and text not in (classes or ()):
            raise DataError(
                f"{table}, line {row.line}: {label} is {text!r}, which stands for a missing value; fill it "
                "in or remove the line, or name all classes in data.classes if it is one"
            )
    return [composed(row.cells[label]) for row in rows]


def _check_files(rows: Sequence[Row], table: Path, folder: Path, file: str, suffix: str) -> list[str]:
    """Return the files' names as they are on disk.

    Raises:
        DataError: There are no rows, a name is missing or stands there twice, or files are not there.
    """
    if not rows:
        raise DataError(f"{table}: there are no rows below the header")
    first: dict[str, int] = {}
    names, missing = [], {}
    for row in rows:
        if not row.cells[file]:
            raise DataError(f"{table}, line {row.line}: {file} is empty; fill it in or remove the line")
        written = row.cells[file] + suffix
        name = spelled(folder, written)
        if name is None:
            missing[written] = row.line
        names.append(name or written)
        if (line := first.setdefault(os.path.normpath(names[-1]), row.line)) != row.line:
            raise DataError(
                f"{table}, line {row.line}: {row.cells[file]} stands in line {line} already; keep one"
            )
    if missing:
        shown = named(f"{name} (line {line})" for name, line in missing.items())
        hint = remedy(folder, list(missing)) or "correct them or data.root"
        raise DataError(
            f"{table}: {len(missing):,} of {len(rows):,} files are not in {folder}: {shown}; {hint}"
        )
    return names


def _part(row: Row, table: Path, split: str) -> str:
    text = row.cells.get(split, "train")
    part = part_of(text)
    if part is None:
        raise DataError(f"{table}, line {row.line}: {split} must be train, val or test, not {text!r}")
    return part
