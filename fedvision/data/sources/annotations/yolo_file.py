"""The text files of YOLO: one line an object, its class number and its place in shares of the image's sides.

``CLASS CX CY WIDTH HEIGHT`` is a box by its centre; ``CLASS X1 Y1 X2 Y2 X3 Y3 ...`` is a polygon, which gives
its bounding box and its area (docs.ultralytics.com/datasets/detect and /segment).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.boxes import COLUMNS, Boxes
from fedvision.data.naming import composed
from fedvision.errors import DataError

_TOP = 1 + 1e-3
"""The largest value: 1, and what rounding adds."""


@dataclass(frozen=True, kw_only=True)
class YoloNames:
    """What a ``data.yaml`` says."""

    names: Sequence[str]
    """Class names; those of numbers that it leaves out are empty."""
    parts: Mapping[str, Sequence[str]]
    """Part -> the paths of its images, as written."""
    base: str
    """What they are relative to, as written."""


def read_yaml(path: Path) -> YoloNames:
    """Read a ``data.yaml``.

    Raises:
        DataError: It is no YAML mapping, or its names are no list of different names.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: this file cannot be read: {error.strerror}; correct data.path") from error
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        told = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: this is no YAML file: {told}; correct it") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: this is no YAML mapping with names; write names: [car, bus], say")
    names = _names(found.get("names"), path)
    count = found.get("nc")
    if count is not None and count != len(names):
        raise DataError(f"{path}: nc is {count!r} and there are {len(names)} names; correct one of them")
    parts = {}
    for part in ("train", "val", "test"):
        value = found.get(part)
        entries = value if isinstance(value, list) else [] if value is None or value == "" else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise DataError(f"{path}: {part} must be a folder or a list of folders, not {value!r}")
        parts[part] = entries
    return YoloNames(names=names, parts=parts, base=str(found.get("path") or ""))


def _names(value: Any, path: Path) -> list[str]:
    if isinstance(value, dict) and all(type(key) is int and 0 <= key < 100_000 for key in value):
        value = [value.get(number, "") for number in range(max(value, default=-1) + 1)]
    # YAML reads a bare no or 1 as a truth value or a number.
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise DataError(
            f"{path}: names must be a list of class names, or a mapping of numbers from 0 to names, each in "
            f"quotes where it is a number, yes or no; it is {value!r}"
        )
    return _different([composed(name.strip()) for name in value], path)


def read_names(path: Path) -> list[str]:
    """Read a ``classes.txt``: a name a line, the first of number 0; an empty line is a number without a name.

    Raises:
        DataError: It is no text, or a name is there twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: this is no text file in UTF-8: {error}; write a name a line") from error
    return _different([composed(line.strip()) for line in text.rstrip().splitlines()], path)


def _different(names: list[str], path: Path) -> list[str]:
    given = [name for name in names if name]
    for name in given:
        if given.count(name) > 1:
            raise DataError(f"{path}: the name {name!r} is there twice; rename one, or merge the classes")
    return names


def read_labels(path: Path, names: Sequence[str], named_in: str) -> tuple[Boxes, list[str]]:
    """Read the text file of one image.

    Args:
        path: The file.
        names: Class names by number; a number without a name is no class.
        named_in: Where they are named, for messages.

    Returns:
        float64 [m, 7] in shares of the image's sides, and each box's place in the file.

    Raises:
        DataError: A line is wrong.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: this file cannot be read: {error.strerror}; correct it") from error
    except UnicodeError as error:
        raise DataError(f"{path}: this is no text file in UTF-8: {error}; export it again") from error
    rows, places = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_row(line.split(), f"{path}, line {number}", names, named_in))
            places.append(f"line {number}")
    return np.array(rows, np.float64).reshape(-1, COLUMNS), places


def _row(cells: Sequence[str], where: str, names: Sequence[str], named_in: str) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        raise DataError(
            f"{where}: {' '.join(cells)[:60]!r} is more than numbers; a line is a class number and the box's "
            "centre x, centre y, width and height"
        ) from None
    if len(values) == 6:
        raise DataError(
            f"{where}: it has 6 values, as lines of detections have with a score; remove the last one"
        )
    if len(values) < 5 or len(values) % 2 == 0:
        raise DataError(
            f"{where}: it has {len(values)} values; a box has 5 (class number, centre x, centre y, width, "
            "height), a polygon the class number and three or more pairs x y"
        )
    label, places = values[0], values[1:]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{where}: a value is no finite number; correct or remove the line")
    if label != int(label) or not 0 <= label < len(names) or not names[int(label)]:
        raise DataError(
            f"{where}: class number {cells[0]} is none of the numbers 0 to {len(names) - 1} that {named_in} "
            "names; correct it, or add the name"
        )
    if max(places) > _TOP or min(places) < 1 - _TOP:
        wrong = max(places, key=lambda value: abs(value - 0.5))
        raise DataError(
            f"{where}: {wrong:g} is outside 0 to 1: YOLO's values are shares of the image's width and "
            "height; divide pixels by them"
        )
    if len(places) == 4:
        x, y, width, height = places
        return [label, x - width / 2, y - height / 2, width, height, width * height, 0]
    return [label, *_bounds(np.array(places).reshape(-1, 2)), 0]


def _bounds(points: NDArray[np.float64]) -> list[float]:
    """Return the bounding box x, y, width, height of a polygon, and its area, at most that of the box."""
    x, y = points.T
    area = abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
    (left, top), (width, height) = points.min(0), np.ptp(points, axis=0)
    return [float(left), float(top), float(width), float(height), min(area, float(width * height))]
