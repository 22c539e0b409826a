"""Boxes out of YOLO's folders: a text file for each image, and ``data.yaml`` with the names of the classes.

::

    PATH/data.yaml, images/train/*.jpg, labels/train/*.txt      parts below images and labels
    PATH/data.yaml, train/images/*.jpg, train/labels/*.txt      images and labels below parts
    PATH/images/*.jpg, labels/*.txt                             a client's own, with the key ``classes``
    PATH/*.jpg, *.txt, classes.txt                              text files beside their images
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedvision.data.boxes import CLASS
from fedvision.data.dataset import Dataset
from fedvision.data.decoding.decode import named
from fedvision.data.decoding.scan import files as files_below
from fedvision.data.decoding.scan import walk
from fedvision.data.paths import expand
from fedvision.data.sources.annotations.reading import BoxReading, boxes_dataset
from fedvision.data.sources.annotations.records import Record, class_order
from fedvision.data.sources.annotations.yolo_file import YoloNames, read_labels, read_names, read_yaml
from fedvision.data.sources.part_names import part_of
from fedvision.errors import DataError
from fedvision.shared_keys import takes_fields_of

_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES = ("classes.txt", "obj.names")
_NO_LABELS = frozenset(
    "classes labels obj train val valid test readme license licence notes requirements".split()
)
"""Text files that lie beside images and are those of no image."""


@takes_fields_of(BoxReading)
def yolo(
    *,
    path: str,
    classes: Sequence[str] | None = None,
    reading: BoxReading,
) -> Dataset:
    """Read images and their boxes from YOLO's text files; an image without one shows no object.

    Args:
        path: The folder, or its ``data.yaml``.
        classes: Classes in the order of their numbers, which the text files mean where neither ``data.yaml``
            nor ``classes.txt`` names them; else those are brought into this order, by their names.
        reading: What all sources of boxes share.

    Returns:
        Images uint8 [N, size, size, channels], boxes float64 [N, 1 + M, 7] (``fedvision.data.boxes``).

    Raises:
        ValueError: A value is out of range.
        DataError: The folder, ``data.yaml``, a line or a box is wrong.
    """
    found = _named(expand(path), classes)
    root = found.root
    images = _parts(root, found)
    if not images.names:
        raise DataError(f"{root}: there are no images; correct data.path")
    _refuse_orphans(root, images.every)
    records, without = _records(root, images, found)
    number = np.unique(np.concatenate([record.boxes[:, CLASS] for record in records])).astype(np.int64)
    used = [found.names[at] for at in number.tolist()]
    names = class_order(classes, [name for name in found.names if name], used, found.where)
    table = np.array([names.index(name) if name in names else -1 for name in found.names])
    for record in records:
        record.boxes[:, CLASS] = table[record.boxes[:, CLASS].astype(np.int64)]
    plain = f"{without:,} of {len(records):,} images have no text file, which says that they show no object"
    notices = (*images.notices, *((plain,) if without else ()))
    return boxes_dataset(records, root, names, reading, shares=True, notices=notices)


@dataclass(frozen=True, kw_only=True)
class _Named:
    """Where the data is and what its classes are called."""

    root: Path
    names: Sequence[str]
    where: str
    """Where they are named, for messages."""
    yaml: YoloNames | None = None


class _Images(NamedTuple):
    """Image files by their part."""

    names: list[str]
    parts: list[str]
    every: Sequence[str]
    """All images, those that are left out as well."""
    notices: tuple[str, ...]


def _named(path: Path, classes: Sequence[str] | None) -> _Named:
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; correct data.path")
    root = path if path.is_dir() else path.parent
    files = [root / name for name in _YAML if (root / name).is_file()] if path.is_dir() else [path]
    if files:
        found = read_yaml(files[0])
        return _Named(root=root, names=found.names, where=str(files[0]), yaml=found)
    for file in (root / name for name in _NAMES):
        if file.is_file():
            return _Named(root=root, names=read_names(file), where=str(file))
    if not classes:
        raise DataError(
            f"{root}: there is neither data.yaml nor classes.txt to name the classes; name them in "
            "data.classes"
        )
    return _Named(root=root, names=class_order(classes, [], [], str(root)), where="data.classes")


def _parts(root: Path, found: _Named) -> _Images:
    """Return images and parts: by ``data.yaml`` where its folders are there, else by folders' names."""
    every = walk(root).images
    if found.yaml is None or not any(found.yaml.parts.values()):
        return _Images(list(every), [_folder_part(name) for name in every], every, ())
    prefixes = {
        prefix: part
        for part, entries in found.yaml.parts.items()
        for entry in entries
        if (prefix := _prefix(root, found.yaml.base, entry, f"{found.where}: {part}")) is not None
    }
    if not prefixes:
        text = f"{found.where}: none of its folders is there; parts go by the names of folders"
        return _Images(list(every), [_folder_part(name) for name in every], every, (text,))
    names, parts, others = [], [], []
    for name in every:
        fitting = [prefix for prefix in prefixes if name.startswith(prefix)]
        if not fitting:
            others.append(name)
            continue
        names.append(name)
        parts.append(prefixes[max(fitting, key=len)])
    text = f"{len(others):,} images are in no folder of {found.where} and left out: {named(others)}"
    return _Images(names, parts, every, (text,) if others else ())


def _prefix(root: Path, base: str, entry: str, where: str) -> str | None:
    """Return the folder of a part relative to the root, with ``/`` at its end; None where it is not there."""
    if entry.endswith(".txt"):
        raise DataError(f"{where} = {entry!r} is a list of files; name the folder of its images there")
    # Where the folder was moved, its base is that of another machine; Roboflow writes ../ too many.
    tried = [root / base / entry, root / entry, root / entry.removeprefix("../")]
    for folder in tried:
        if folder.is_dir():
            if not folder.resolve().is_relative_to(root.resolve()):
                raise DataError(
                    f"{where} = {entry!r} lies outside of {root}; set data.path to a folder above both"
                )
            inner = folder.resolve().relative_to(root.resolve()).as_posix()
            return "" if inner == "." else f"{inner}/"
    return None


def _folder_part(name: str) -> str:
    parts = [part_of(folder) for folder in name.split("/")[:-1]]
    return next((part for part in parts if part), "train")


def _label_of(image: str) -> str:
    """Return an image's text file: below ``labels`` where the image is below ``images``, else beside it."""
    *folders, file = image.rsplit(".", 1)[0].split("/")
    places = [place for place, folder in enumerate(folders) if folder == "images"]
    if places:
        folders[places[-1]] = "labels"
    return "/".join([*folders, f"{file}.txt"])


def _refuse_orphans(root: Path, images: Sequence[str]) -> None:
    known = {_label_of(name) for name in images}
    beside = {name.rsplit("/", 1)[0] if "/" in name else "" for name in images}
    orphans = []
    for name in files_below(root, ".txt"):
        folder = name.rsplit("/", 1)[0] if "/" in name else ""
        labelled = "labels" in folder.split("/") or folder in beside
        if labelled and name not in known and Path(name).stem.split(".")[0].lower() not in _NO_LABELS:
            orphans.append(name)
    if orphans:
        raise DataError(
            f"{root}: {len(orphans):,} text files have no image: {named(orphans)}; bring back the images, or "
            "remove the text files"
        )


def _records(root: Path, images: _Images, found: _Named) -> tuple[list[Record], int]:
    records, without, seen = [], 0, dict[str, str]()
    for name, part in zip(images.names, images.parts, strict=True):
        label = _label_of(name)
        path = root / label
        if (other := seen.setdefault(label, name)) != name:
            raise DataError(f"{path}: it may belong to {other} or {name}; rename one of them")
        boxes, places = np.zeros((0, 7)), list[str]()
        if path.is_file():
            boxes, places = read_labels(path, found.names, found.where)
        else:
            without += 1
        records.append(
            Record(name=name, file=str(path), where=str(path), part=part, boxes=boxes, places=places)
        )
    return records, without
