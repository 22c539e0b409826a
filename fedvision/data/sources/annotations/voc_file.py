"""One annotation file of Pascal VOC: the image's name, its size, its objects.

Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge", IJCV 88. Corners are numbers of
pixels, the first pixel is 1 and the last one belongs to the box, so that (1, W) is the whole width: in
coordinates x = xmin - 1 and width = xmax - xmin + 1, as detectron2 reads them. Many tools write plain
coordinates from 0 (``origin = 0``): x = xmin and width = xmax - xmin.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from fedvision.data.boxes import COLUMNS, Boxes
from fedvision.data.naming import composed
from fedvision.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """One object."""

    name: str
    corners: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax, as written."""
    difficult: bool


class VocFile(NamedTuple):
    """What one file says."""

    path: Path
    filename: str
    """Of the image; empty where it does not say."""
    size: tuple[int, int]
    """Width and height."""
    objects: Sequence[VocObject]


def read_voc(path: Path) -> VocFile:
    """Read and check one file.

    Raises:
        DataError: It is no XML, has a document type, or one of its entries is wrong.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise DataError(f"{path}: its root is <{root.tag}>, not <annotation>: this is no VOC file; remove it")
    size = tuple(_side(root, side, path) for side in ("width", "height"))
    objects = [
        _object(element, f"{path}, object {number}")
        for number, element in enumerate(root.findall("object"), start=1)
    ]
    return VocFile(path, _text(root, "filename"), (size[0], size[1]), objects)


def _parse(path: Path) -> ET.Element:
    """Parse a file without a document type: entities can name other files, or grow without bound."""

    def refuse(*_: object) -> None:
        raise DataError(
            f"{path}: it has a document type (<!DOCTYPE ...>), which is not read; remove that line"
        )

    builder, parser = ET.TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except OSError as error:
        raise DataError(f"{path}: this file cannot be read: {error.strerror}; remove it") from error
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise DataError(f"{path}: this is no XML file: {error}; export it again") from error


def _text(element: ET.Element, tag: str) -> str:
    found = element.find(tag)
    return composed((found.text or "").strip()) if found is not None else ""


def _side(root: ET.Element, side: str, path: Path) -> int:
    text = _text(root, f"size/{side}")
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise DataError(
            f"{path}: size/{side} is {text!r}; it must be the {side} of the image in pixels, above 0"
        )
    return int(text)


def _object(element: ET.Element, where: str) -> VocObject:
    name = _text(element, "name")
    if not name:
        raise DataError(f"{where}: it has no <name>; name its class")
    box = element.find("bndbox")
    texts = ["" if box is None else _text(box, corner) for corner in _CORNERS]
    try:
        corners = [float(text) for text in texts]
    except ValueError:
        shown = ", ".join(f"{corner} {text!r}" for corner, text in zip(_CORNERS, texts, strict=True))
        raise DataError(f"{where}: its bndbox has {shown}; all four must be numbers of pixels") from None
    if (difficult := _text(element, "difficult") or "0") not in ("0", "1"):
        raise DataError(f"{where}: difficult is {difficult!r}; it must be 0 or 1")
    return VocObject(name, (corners[0], corners[1], corners[2], corners[3]), difficult == "1")


def box_rows(file: VocFile, classes: Sequence[str], *, origin: int, ignore: bool) -> Boxes:
    """Return the boxes of a file, float64 [m, 7].

    Args:
        file: The file.
        classes: Class names, all of the objects' among them.
        origin: Number of the first pixel, 1 or 0.
        ignore: Whether difficult objects are crowds.

    Raises:
        DataError: A corner is 0 where pixels are counted from 1.
    """
    rows = np.zeros((len(file.objects), COLUMNS))
    for number, (row, one) in enumerate(zip(rows, file.objects, strict=True), start=1):
        left, top, right, bottom = one.corners
        if origin == 1 and 0 in (left, top):
            raise DataError(
                f"{file.path}, object {number}: its bndbox begins at pixel 0, and VOC counts pixels "
                "from 1; set data.origin = 0 if a tool wrote plain coordinates from 0, else correct it"
            )
        width, height = right - left + origin, bottom - top + origin
        crowd = one.difficult and ignore
        row[:] = [classes.index(one.name), left - origin, top - origin, width, height, width * height, crowd]
    return rows
