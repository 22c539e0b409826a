"""Boxes out of COCO JSON files: one for training and, where there is one, one for the test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fedvision.data.dataset import Dataset
from fedvision.data.paths import expand
from fedvision.data.sources.annotations.coco_file import (
    Annotation,
    CocoFile,
    box_rows,
    image_records,
    read_coco,
)
from fedvision.data.sources.annotations.reading import BoxReading, boxes_dataset
from fedvision.data.sources.annotations.records import Record, class_order
from fedvision.errors import DataError
from fedvision.shared_keys import takes_fields_of


@dataclass(frozen=True, kw_only=True)
class CocoPaths:
    """Which JSON files and images are read.

    Raises:
        ValueError: ``test_root`` is given without ``test``.
    """

    path: str
    """The JSON file of the training images, or of all."""
    root: str = ""
    """Folder of the image files; empty is the JSON file's."""
    test: str = ""
    """The JSON file of the test images, with the same categories."""
    test_root: str = ""
    """Folder of the test images' files; empty is that JSON file's."""
    split: str = "split"
    """Field of an image that says train, val or test; its other fields are columns."""

    def __post_init__(self) -> None:
        if self.test_root and not self.test:
            raise ValueError(
                "test_root is the folder of the images that the JSON file data.test names; name it"
            )


@takes_fields_of(CocoPaths, BoxReading)
def coco(*, classes: Sequence[str] | None = None, paths: CocoPaths, reading: BoxReading) -> Dataset:
    """Read images and their boxes from COCO JSON; an image without an annotation shows no object.

    Args:
        classes: Classes in the order of their numbers; by default the categories in the order of their ids.
            A category without an object need not be among them.
        paths: Which JSON files and images are read.
        reading: What all sources of boxes share.

    Returns:
        Images uint8 [N, size, size, channels], boxes float64 [N, 1 + M, 7] (``fedvision.data.boxes``).

    Raises:
        ValueError: A value is out of range.
        DataError: A JSON file or one of its entries is wrong, a file is missing, or a box is.
    """
    found = open_files(paths)
    names = class_order(classes, found.categories, found.used(), str(found.files[0].path))
    number = found.numbers(names)
    records = []
    for image in found.images:
        rows = box_rows(image.annotations, number, image.file.path)
        places = [annotation.place for annotation in image.annotations]
        records.append(replace(image.record, boxes=rows, places=places))
    return boxes_dataset(records, found.root, names, reading)


class CocoImage(NamedTuple):
    """One image with its annotations."""

    record: Record
    file: CocoFile
    annotations: list[Annotation]


class CocoImages(NamedTuple):
    """All images of one or two files."""

    files: list[CocoFile]
    root: Path
    """The folder that the names of all image files are relative to."""
    images: list[CocoImage]

    @property
    def categories(self) -> list[str]:
        """The names of all categories."""
        return list(self.files[0].categories.values())

    def numbers(self, names: Sequence[str]) -> dict[Any, int]:
        """Return the class of each category by its id, of those that have one: both files have the same."""
        return {key: names.index(name) for key, name in self.files[0].categories.items() if name in names}

    def used(self) -> set[str]:
        """Return the names of categories of which there is an annotation."""
        return {file.categories[one.category] for file in self.files for one in file.annotations}


def open_files(paths: CocoPaths) -> CocoImages:
    """Read the JSON files that an experiment names.

    Raises:
        DataError: One of them is wrong, or they have other categories.
    """
    named = (("data.path", paths.path), ("data.test", paths.test))
    files = [read_coco(expand(one), key) for key, one in named if one or key == "data.path"]
    folders = [
        expand(given) if given else file.path.parent
        for file, given in zip(files, (paths.root, paths.test_root), strict=False)
    ]
    if len(files) == 2 and files[0].categories != files[1].categories:
        raise DataError(
            f"{files[1].path}: its categories are not those of {files[0].path}; give both the same names and "
            "ids"
        )
    top = Path(os.path.commonpath(folders))
    images: list[CocoImage] = []
    seen: dict[Any, Path] = {}
    for file, folder, part in zip(files, folders, ("train", "test"), strict=False):
        prefix = "" if folder == top else f"{folder.relative_to(top).as_posix()}/"
        records, annotations = image_records(file, folder, prefix, part, paths.split), file.by_image()
        for identity, record in records.items():
            if (other := seen.setdefault(record.name, file.path)) is not file.path:
                raise DataError(f"{file.path}: {record.name} is in {other} as well; keep it in one of them")
            images.append(CocoImage(record, file, annotations[identity]))
    return CocoImages(files, top, images)
