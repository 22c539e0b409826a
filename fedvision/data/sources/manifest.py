"""A CSV file that lists images: one row an image, with its label and whatever else is known of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.decode import Decoding, named
from fedvision.data.decoding.file_list import Listing, resolve_classes, to_dataset
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


def manifest(
    *,
    path: str,
    size: int,
    root: str = "",
    file: str = "file",
    label: str | Sequence[str] = "label",
    labels: Sequence[str] = (),
    label_separator: str = "",
    mask: str = "",
    values: Sequence[int] = (),
    ignore: int = 255,
    split: str = "split",
    delimiter: str = ",",
    encoding: str = "utf-8",
    suffix: str = "",
    channels: int = 3,
    fit: str = "crop",
    range: float = 0.0,
    classes: Sequence[str] | None = None,
    validation: float = 0.0,
    group: str = "",
    val: str = "auto",
    max_unreadable: float = 0.01,
    cache: str = "",
    workers: int = 0,
) -> Dataset:
    """Read the images that a CSV file lists; each is decoded once and kept as pixels in the cache.

    Args:
        path: The CSV file, its first line the columns' names.
        size: Side of the square images in pixels.
        root: Folder that the files' names are relative to; empty is the CSV file's folder.
        file: Column of the files' names.
        label: Column of the labels, or a list of one-hot columns whose names are the classes; every other
            column goes along as text.
        labels: Columns of 0 and 1, one for each label, where an image may have several of them.
        label_separator: What stands between the labels of an image that may have several, all in the column
            ``label``; an empty cell is an image without any.
        mask: Column of the names of mask files, where pixels have classes; it takes the place of labels.
        values: The value of each class in the masks, such as [0, 255]; by default its number.
        ignore: The value of pixels that are neither trained on nor measured, unless ``values`` has it.
        split: Column that says train, val or test; all rows are for training where it is missing.
        delimiter: What stands between two cells.
        encoding: Of the file: ``"utf-8"``, ``"cp1252"`` (Excel's on Windows), ``"utf-16"``, ...
        suffix: What is added to the files' names where they lack it: ``".jpg"``.
        channels: 1 for gray, 3 for RGB.
        fit: ``"crop"`` (shorter side to ``size``, then the centre), ``"stretch"``, ``"pad"`` (black bars), or
            ``"exact"``: files of another size cannot be read.
        range: The value that is white, such as 1023 for 10 bits in 16-bit files; 0 goes by the file.
        classes: Labels in the order of their numbers; by default those in the file, sorted, by value where
            all are whole numbers.
        validation: Share of the training images, stratified by class, that becomes the test set, in the
            place of one that there is.
        group: The column whose equal values belong together, such as a patient's images: neither
            ``validation`` nor the partition nor the holdout parts them.
        val: What becomes of val rows: ``"train"``, ``"test"``, ``"drop"``, or ``"auto"``: the test set where
            there is none, else left out.
        max_unreadable: Share of files that may be unreadable; they are left out and named.
        cache: Folder of decoded images and masks; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded.
        workers: Processes that decode; 0 is one per CPU core where that pays.

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
    check_range(at_least=0, ignore=ignore)
    if len(delimiter) != 1:
        raise ValueError(f"delimiter must be one character, not {delimiter!r}")
    table = expand(path)
    columns = _label_columns(label, labels, label_separator, mask)
    key = "mask" if mask else "labels" if labels else "label"
    # The column "split" may be missing; one that was named may not.
    needed = [("file", file), *((key, column) for column in columns)]
    needed += [("split", split)] if split != "split" else []
    rows = read_table(table, delimiter, encoding, needed)
    folder = expand(root) if root else table.parent
    names = _check_files(rows, table, folder, file, suffix)
    if mask:
        code = mask_code(classes, values, ignore=ignore)
        targets, _ = read_masks(folder, names, _check_files(rows, table, folder, mask, ""), code, how)
        settled = with_classes(code, targets, str(table))
    elif labels or label_separator:
        targets, settled = _several_labels(rows, table, columns, "" if labels else label_separator, classes)
    else:
        targets, settled = _one_class(rows, table, label, classes)
    others = columns_of(rows, (file, split, *columns))
    listing = Listing(
        root=folder,
        names=names,
        labels=targets,
        classes=settled,
        parts=np.array([_part(row, table, split) for row in rows]),
        columns={name: np.array([composed(row.cells[name]) for row in rows]) for name in others},
        group=group,
    )
    return to_dataset(listing, how, val=val, validation=validation)


def _label_columns(
    label: str | Sequence[str], labels: Sequence[str], label_separator: str, mask: str
) -> Sequence[str]:
    """Return the columns that hold labels, or name masks.

    Raises:
        ValueError: The keys contradict each other.
    """
    if mask and (label != "label" or labels or label_separator):
        raise ValueError("mask names files with the class of each pixel; remove the keys of labels, or mask")
    if mask:
        return [mask]
    if labels and (label != "label" or label_separator):
        raise ValueError("labels names columns of 0 and 1; remove label and label_separator, or labels")
    if label_separator and not isinstance(label, str):
        raise ValueError("label_separator parts the labels in one column; let label name it")
    return list(labels) or ([label] if isinstance(label, str) else list(label))


def _several_labels(
    rows: Sequence[Row],
    table: Path,
    columns: Sequence[str],
    separator: str,
    classes: Sequence[str] | None,
) -> tuple[Targets, tuple[str, ...]]:
    """Return 0 and 1 for the labels of each row, uint8 [N, L], and the names of all.

    Args:
        rows: The file's.
        table: The file, for messages.
        columns: One a label; or the one with all of an image's, parted by ``separator``.
        separator: Empty where each label has a column.
        classes: As written in the experiment, or None.
    """
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
