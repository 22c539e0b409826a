"""What a format's reader finds of each image, before its file is looked at, and columns of their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvision.data.boxes import COLUMNS, Boxes
from fedvision.data.decoding.decode import named
from fedvision.data.decoding.file_list import resolve_classes
from fedvision.data.naming import composed, is_missing
from fedvision.data.sources.file_matching import remedy
from fedvision.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image and the boxes that are drawn on it."""

    name: str
    """Its file, relative to the folder of all, as it is on disk."""
    file: str
    """The file that describes it."""
    where: str
    """That file, and the image's place in it where there are several; for messages."""
    part: str = "train"
    size: tuple[int, int] | None = None
    """Width and height as the record says; None where it does not."""
    boxes: Boxes = field(default_factory=lambda: np.zeros((0, COLUMNS)))
    """float64 [m, 7], in pixels or, as YOLO has them, in shares of the image's sides."""
    places: Sequence[str] = ()
    """[m]: the box's place in the record, for messages: ``annotation 7``, ``line 3``."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Other facts by name; each becomes a column."""


def class_order(
    given: Sequence[str] | None, found: Sequence[str], used: Iterable[str], where: str
) -> list[str]:
    """Return class names in the order of their numbers.

    Args:
        given: As written in the experiment, or None.
        found: All that the annotations name, in their order.
        used: Those of which there is an object.
        where: Place for messages.

    Raises:
        ValueError: ``given`` is no list of different names.
        DataError: A name stands for a missing value, or a used one is not among the given ones.
    """
    for name in found:
        if is_missing(name):
            raise DataError(f"{where}: class {name!r} stands for a missing value; give it a name")
    if given is None:
        return list(found)
    used = set(used)
    return list(resolve_classes(given, [name for name in found if name in used] or list(given), where))


def with_pattern(records: Sequence[Record], pattern: str) -> list[Record]:
    """Return records with what a pattern finds in their files' names.

    Args:
        records: N.
        pattern: A regular expression with named groups, searched in each name, folders included; empty
            changes nothing.

    Raises:
        ValueError: It is none, or has no named group.
        DataError: A name does not match, or a group has the name of another fact.
    """
    if not pattern:
        return list(records)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern = {pattern!r} is no regular expression: {error}") from error
    if not compiled.groupindex:
        raise ValueError(
            f"pattern = {pattern!r} has no named group; write one such as (?P<patient>[^_]+), which becomes "
            "the column patient"
        )
    found = []
    for record in records:
        match = compiled.search(record.name)
        if match is None:
            raise DataError(
                f"{record.name}: data.pattern = {pattern!r} does not match this name; correct it, or rename "
                "the file"
            )
        facts = {name: composed(value or "") for name, value in match.groupdict().items()}
        if twice := facts.keys() & record.facts.keys():
            raise DataError(
                f"{record.where}: data.pattern names a column {sorted(twice)[0]!r}, which the annotations "
                "have already; give the group another name"
            )
        found.append(replace(record, facts={**record.facts, **facts}))
    return found


def columns_of(records: Sequence[Record]) -> dict[str, NDArray[np.str_]]:
    """Return the facts of all records by name, each [N]; empty text where a record lacks one."""
    names = dict.fromkeys(name for record in records for name in record.facts)
    return {name: np.array([record.facts.get(name, "") for record in records]) for name in names}


def missing_files(where: str, folder: Path, missing: Sequence[str], total: int) -> DataError:
    """Return the error on files that annotations name and that are not there.

    Args:
        where: The annotations' file.
        folder: Where the files were looked for.
        missing: Their names, at least one.
        total: How many files there should be.
    """
    # Such a remedy is for tables; there is no key for it here.
    hint = remedy(folder, missing).split(": set data.suffix")[0]
    if hint.endswith("is there"):
        hint += ": correct file_name"
    return DataError(
        f"{where}: {len(missing):,} of {total:,} image files are not in {folder}: {named(missing)}; "
        f"{hint or 'set data.root to their folder, or remove their records'}"
    )
