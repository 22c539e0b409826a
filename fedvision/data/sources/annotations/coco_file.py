"""A COCO JSON file: its images, categories and annotations, each checked (cocodataset.org/#format-data).

Lin et al. 2014, "Microsoft COCO: Common Objects in Context", arXiv 1405.0312. Boxes are x, y, width, height
in pixels from the corner at (0, 0), fractions allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedvision.data.boxes import COLUMNS, Boxes
from fedvision.data.naming import composed
from fedvision.data.sources.annotations.records import Record, missing_files
from fedvision.data.sources.file_matching import spelled
from fedvision.data.sources.part_names import part_of
from fedvision.errors import DataError

_LISTS = ("images", "annotations", "categories")
_NO_FACTS = frozenset(("id", "file_name", "width", "height", "coco_url", "flickr_url"))


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One object, as the file has it."""

    image: Any
    """The id of its image."""
    category: Any
    place: str
    """For messages."""
    entry: Mapping[str, Any]

    @property
    def crowd(self) -> bool:
        """Whether it surrounds a crowd."""
        return bool(self.entry.get("iscrowd", 0))


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """A file's contents."""

    path: Path
    images: Mapping[Any, Mapping[str, Any]]
    """By id, in the file's order."""
    categories: Mapping[Any, str]
    """Names by id, in the order of the ids."""
    annotations: Sequence[Annotation]

    def by_image(self) -> dict[Any, list[Annotation]]:
        """Return the annotations of each image by its id, in the file's order."""
        found: dict[Any, list[Annotation]] = {image: [] for image in self.images}
        for annotation in self.annotations:
            found[annotation.image].append(annotation)
        return found


def read_coco(path: Path, key: str = "data.path") -> CocoFile:
    """Read and check a file.

    Args:
        path: The file.
        key: What names it in the experiment, for messages.

    Raises:
        DataError: It is no COCO file, or one of its entries is wrong.
    """
    document = _document(path, key)
    images = _images(document["images"], path)
    categories = _categories(document["categories"], path)
    annotations = [
        _annotation(entry, place, path, images, categories)
        for entry, place in _entries(document["annotations"], "annotation", path)
    ]
    return CocoFile(path=path, images=images, categories=categories, annotations=annotations)


def _document(path: Path, key: str) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: this file cannot be read: {error.strerror}; correct {key}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is no JSON file: {error}; export the annotations again") from error
    if isinstance(document, list):
        raise DataError(
            f"{path}: this is a list, as files of detections are, and no COCO file of annotations with "
            "images, annotations and categories; name that one"
        )
    found = document if isinstance(document, dict) else {}
    for name in _LISTS:
        if not isinstance(found.get(name), list):
            raise DataError(
                f"{path}: this is no COCO file: it has no list {name!r}; export the annotations as COCO JSON"
            )
    return found


def _entries(entries: Sequence[Any], kind: str, path: Path) -> list[tuple[Mapping[str, Any], str]]:
    """Return objects with their place for messages; ids are numbers or texts, each once."""
    seen: set[Any] = set()
    found: list[tuple[Mapping[str, Any], str]] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(
                f"{path}: {kind} number {number} in its list is no object but {_shown(entry)}; remove it"
            )
        identity = entry.get("id")
        if isinstance(identity, bool) or not isinstance(identity, int | str):
            raise DataError(
                f"{path}: {kind} number {number} in its list has "
                f"{'no id' if identity is None else f'the id {_shown(identity)}'}; give each {kind} a whole "
                "number of its own"
            )
        if identity in seen:
            raise DataError(f"{path}: two {_plural(kind)} have the id {_shown(identity)}; give each its own")
        seen.add(identity)
        found.append((entry, f"{kind} {identity}"))
    return found


def _images(entries: Sequence[Any], path: Path) -> dict[Any, Mapping[str, Any]]:
    files: dict[str, str] = {}
    for entry, place in _entries(entries, "image", path):
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}, {place}: file_name is {_shown(name)}; it must name the image's file")
        if name in files:
            raise DataError(f"{path}, {place}: its file {name} is that of {files[name]} already; keep one")
        files[name] = place
        for side in ("width", "height"):
            value = entry.get(side)
            if value is not None and not (type(value) is int and value > 0):
                raise DataError(f"{path}, {place}: {side} is {_shown(value)}; it must be a number of pixels")
    return {entry["id"]: entry for entry in entries}


def _categories(entries: Sequence[Any], path: Path) -> dict[Any, str]:
    names: dict[str, str] = {}
    found = {}
    for entry, place in _entries(entries, "category", path):
        name = entry.get("name")
        if not isinstance(name, str):
            raise DataError(f"{path}, {place}: its name is {_shown(name)}; give it one")
        if (name := composed(name)) in names:
            raise DataError(
                f"{path}, {place}: its name {name!r} is that of {names[name]} already; rename or merge them"
            )
        names[name] = place
        found[entry["id"]] = name
    if not found:
        raise DataError(f"{path}: it has no categories; they are the classes")
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _annotation(
    entry: Mapping[str, Any],
    place: str,
    path: Path,
    images: Mapping[Any, Any],
    categories: Mapping[Any, str],
) -> Annotation:
    found: list[Any] = []
    for key, known, kind in (("image_id", images, "image"), ("category_id", categories, "category")):
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, int | str) or value not in known:
            raise DataError(
                f"{path}, {place}: its {key} {_shown(value)} is that of no {kind}; remove the annotation or "
                f"add the {kind}"
            )
        found.append(value)
    if entry.get("iscrowd", 0) not in (0, 1):
        raise DataError(f"{path}, {place}: iscrowd is {_shown(entry['iscrowd'])}; it must be 0 or 1")
    return Annotation(image=found[0], category=found[1], place=place, entry=entry)


def box_rows(annotations: Sequence[Annotation], number: Mapping[Any, int], path: Path) -> Boxes:
    """Return the boxes of an image, float64 [m, 7].

    Args:
        annotations: Its m.
        number: Class by the category's id.
        path: The file, for messages.

    Raises:
        DataError: A box is not four numbers, or an area no number of at least 0.
    """
    rows = np.zeros((len(annotations), COLUMNS))
    for row, annotation in zip(rows, annotations, strict=True):
        box = annotation.entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise DataError(
                f"{path}, {annotation.place}: its bbox is {_shown(box)}; it must be the four numbers x, y, "
                "width, height in pixels"
            )
        area = annotation.entry.get("area")
        if area is not None and not (_is_number(area) and area >= 0):
            raise DataError(
                f"{path}, {annotation.place}: its area is {_shown(area)}; it must be a number of pixels, or "
                "be left out for that of the box"
            )
        # An area of 0 is what tools write that do not know it.
        row[:] = [number[annotation.category], *box, area or box[2] * box[3], annotation.crowd]
    return rows


def image_records(file: CocoFile, folder: Path, prefix: str, part: str, split: str) -> dict[Any, Record]:
    """Return the images of a file by their id, without boxes.

    Args:
        file: The file.
        folder: Where its images are.
        prefix: What is put before their names, to be relative to the folder of all.
        part: Which part they are for, where the file does not say.
        split: The field that does.

    Raises:
        DataError: Files are missing, or a part is none.
    """
    found, missing = {}, []
    for identity, entry in file.images.items():
        name = spelled(folder, entry["file_name"])
        if name is None:
            missing.append(entry["file_name"])
            continue
        facts = {
            composed(key): composed(str(value))
            for key, value in entry.items()
            if key not in _NO_FACTS and key != split and isinstance(value, str | int | float)
        }
        size = entry.get("width"), entry.get("height")
        where = f"{file.path}, image {identity}"
        found[identity] = Record(
            name=prefix + name,
            file=str(file.path),
            where=where,
            part=_part(entry[split], split, where) if split in entry else part,
            size=(int(size[0]), int(size[1])) if size[0] and size[1] else None,
            facts=facts,
        )
    if missing:
        raise missing_files(str(file.path), folder, missing, len(file.images))
    return found


def _part(text: Any, split: str, where: str) -> str:
    part = part_of(str(text))
    if part is None:
        raise DataError(f"{where}: {split} must be train, val or test, not {_shown(text)}")
    return part


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plural(kind: str) -> str:
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


def _shown(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
