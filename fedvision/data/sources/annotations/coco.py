"""Boxes out of COCO JSON files: one for training and, where there is one, one for the test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.decode import Decoding
from fedvision.data.paths import expand
from fedvision.data.sources.annotations.coco_file import (
    Annotation,
    CocoFile,
    box_rows,
    image_records,
    read_coco,
)
from fedvision.data.sources.annotations.reading import Reading, boxes_dataset
from fedvision.data.sources.annotations.records import Record, class_order
from fedvision.errors import DataError


def coco(
    *,
    path: str,
    size: int,
    root: str = "",
    test: str = "",
    test_root: str = "",
    split: str = "split",
    pattern: str = "",
    channels: int = 3,
    fit: str = "pad",
    range: float = 0.0,
    classes: Sequence[str] | None = None,
    repair: bool = False,
    tile: int = 0,
    overlap: int = 0,
    validation: float = 0.0,
    group: str = "",
    val: str = "auto",
    max_unreadable: float = 0.01,
    cache: str = "",
    workers: int = 0,
) -> Dataset:
    """Read images and their boxes from COCO JSON; an image without an annotation shows no object.

    Args:
        path: The JSON file of the training images, or of all.
        size: Side of the square images in pixels.
        root: Folder of the image files; empty is the JSON file's.
        test: The JSON file of the test images, with the same categories.
        test_root: Folder of the test images' files; empty is that JSON file's.
        split: Field of an image that says train, val or test.
        pattern: A regular expression with named groups, searched in the files' names: each group becomes a
            column, such as ``"(?P<patient>[^_/]+)_"``.
        channels: 1 for gray, 3 for RGB.
        fit: ``"pad"`` (black bars), ``"stretch"``, or ``"exact"``: files of another size cannot be read.
        range: The value that is white, such as 1023 for 10 bits in 16-bit files; 0 goes by the file.
        classes: Classes in the order of their numbers; by default the categories in the order of their ids.
            A category without an object need not be among them.
        repair: Clip boxes that stick out of their image by more than a pixel and leave out those without area
            or outside of it, with a notice that counts them; else they are refused.
        tile: Cut images into tiles of that side in pixels, each an image; 0 keeps them whole.
        overlap: Pixels that neighbouring tiles share.
        validation: Share of the training images, stratified by their rarest class, that becomes the test set,
            in the place of one that there is.
        group: The column whose equal values belong together, such as a patient's images: neither
            ``validation`` nor the partition nor the holdout parts them. The fields of images are columns.
        val: What becomes of val images: ``"train"``, ``"test"``, ``"drop"``, or ``"auto"``: the test set
            where there is none, else left out.
        max_unreadable: Share of files that may be unreadable; they are left out and named.
        cache: Folder of decoded images; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded.
        workers: Processes that decode; 0 is one per CPU core where that pays.

    Returns:
        Images uint8 [N, size, size, channels], boxes float64 [N, 1 + M, 7] (``fedvision.data.boxes``).

    Raises:
        ValueError: A value is out of range.
        DataError: A JSON file or one of its entries is wrong, a file is missing, or a box is.
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
    reading = Reading(
        how=how,
        val=val,
        validation=validation,
        group=group,
        pattern=pattern,
        repair=repair,
        tile=tile,
        overlap=overlap,
    )
    found = open_files(path, root, test, test_root, split)
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


def open_files(path: str, root: str, test: str, test_root: str, split: str) -> CocoImages:
    """Read the JSON files that an experiment names.

    Raises:
        ValueError: ``test_root`` is given without ``test``.
        DataError: One of them is wrong, or they have other categories.
    """
    if test_root and not test:
        raise ValueError("test_root is the folder of the images that the JSON file data.test names; name it")
    named = (("data.path", path), ("data.test", test))
    files = [read_coco(expand(one), key) for key, one in named if one or key == "data.path"]
    folders = [
        expand(given) if given else file.path.parent
        for file, given in zip(files, (root, test_root), strict=False)
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
        records, annotations = image_records(file, folder, prefix, part, split), file.by_image()
        for identity, record in records.items():
            if (other := seen.setdefault(record.name, file.path)) is not file.path:
                raise DataError(f"{file.path}: {record.name} is in {other} as well; keep it in one of them")
            images.append(CocoImage(record, file, annotations[identity]))
    return CocoImages(files, top, images)
