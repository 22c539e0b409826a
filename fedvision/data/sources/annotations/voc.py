"""Boxes out of folders of Pascal VOC's XML files.

::

    PATH/Annotations/*.xml, JPEGImages/*, ImageSets/Main/{train,val,test}.txt   VOC's own, as torchvision's
                                                                                VOCDetection unpacks it
    PATH/**/{*.xml, *.jpg}                          XML files beside their images, below train/, val/ or test/
                                                    where there are such folders
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.decode import named
from fedvision.data.decoding.scan import files as files_below
from fedvision.data.decoding.scan import walk
from fedvision.data.paths import expand
from fedvision.data.sources.annotations.reading import BoxReading, boxes_dataset
from fedvision.data.sources.annotations.records import Record, class_order
from fedvision.data.sources.annotations.voc_file import VocFile, box_rows, read_voc
from fedvision.data.sources.part_names import part_of
from fedvision.errors import DataError
from fedvision.shared_keys import takes_fields_of

DIFFICULT = ("ignore", "keep")
"""What becomes of difficult objects: neither trained on nor counted, or as all others."""
_SETS = "ImageSets/Main"


@takes_fields_of(BoxReading)
def voc(
    *,
    path: str,
    difficult: str = "ignore",
    origin: int = 1,
    classes: Sequence[str] | None = None,
    reading: BoxReading,
) -> Dataset:
    """Read images and their boxes from Pascal VOC's XML files; one without an object shows none.

    Args:
        path: The folder, such as ``VOCdevkit/VOC2012``, or one of XML files beside their images.
        difficult: What becomes of objects that are marked so: ``"ignore"`` neither trains on them nor counts
            them, as crowds of COCO; ``"keep"`` takes them as all others.
        origin: Number of the first pixel: 1 as VOC counts them, the last one belonging to the box; 0 for
            plain coordinates, as many tools write them.
        classes: Classes in the order of their numbers; by default those of the objects, sorted.
        reading: What all sources of boxes share.

    Returns:
        Images uint8 [N, size, size, channels], boxes float64 [N, 1 + M, 7] (``fedvision.data.boxes``).

    Raises:
        ValueError: A value is out of range.
        DataError: The folder, an XML file or a box is wrong, or a file is missing.
    """
    if difficult not in DIFFICULT:
        raise ValueError(f"difficult must be one of {', '.join(DIFFICULT)}, not {difficult!r}")
    if origin not in (0, 1):
        raise ValueError(f"origin must be 1, or 0 for coordinates that begin there, not {origin!r}")
    root = expand(path)
    files, parts, notices = _files(root)
    found = sorted({one.name for file in files for one in file.objects})
    names = class_order(classes, found, found, str(root))
    if not names:
        raise DataError(f"{root}: no XML file has an object; name the classes in data.classes")
    images, unlisted = _images(root, files)
    records = [
        Record(
            name=image,
            file=str(file.path),
            where=str(file.path),
            part=part,
            size=file.size,
            boxes=box_rows(file, names, origin=origin, ignore=difficult == "ignore"),
            places=[f"object {number}" for number, _ in enumerate(file.objects, start=1)],
        )
        for file, image, part in zip(files, images, parts, strict=True)
    ]
    return boxes_dataset(records, root, names, reading, notices=(*notices, *unlisted))


def _files(root: Path) -> tuple[list[VocFile], list[str], tuple[str, ...]]:
    """Return the XML files, the part of each, and notices."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; correct data.path")
    folder = root / "Annotations"
    if not folder.is_dir() and (
        inner := sorted((*root.glob("*/Annotations"), *root.glob("*/*/Annotations")))
    ):
        raise DataError(f"{root}: Annotations/ lies deeper; set data.path to {inner[0].parent}")
    within = folder if folder.is_dir() else root
    paths = [within / name for name in files_below(within, ".xml")]
    if not paths:
        raise DataError(f"{root}: there is no XML file in Annotations/ or below; correct data.path")
    listed = _listed(root)
    if not listed:
        parts = [_folder_part(path, root) for path in paths]
        return [read_voc(path) for path in paths], parts, ()
    known = {path.stem: path for path in paths}
    for name, (_, place) in listed.items():
        if name not in known:
            raise DataError(f"{place}: {name} has no XML file in {folder}; remove the line, or add the file")
    left_out = [path.name for path in paths if path.stem not in listed]
    notices = (
        (f"{len(left_out):,} XML files are in no list of {_SETS} and left out: {named(left_out)}",)
        if left_out
        else ()
    )
    chosen = [(known[name], part) for name, (part, _) in listed.items()]
    return [read_voc(path) for path, _ in chosen], [part for _, part in chosen], notices


def _listed(root: Path) -> dict[str, tuple[str, str]]:
    """Return the part of each name that a list of VOC has, and its place there."""
    found: dict[str, tuple[str, str]] = {}
    lists = {part: root / _SETS / f"{part}.txt" for part in ("train", "val", "trainval", "test")}
    if lists["train"].is_file():
        del lists["trainval"]  # it is train and val together
    for part, path in lists.items():
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if not line.strip():
                continue
            name, place = line.split()[0], f"{path}, line {number}"
            if name in found:
                raise DataError(f"{place}: {name} is in {found[name][1]} already; keep it in one of them")
            found[name] = ("train" if part == "trainval" else part, place)
    return found


def _folder_part(path: Path, root: Path) -> str:
    parts = [part_of(folder) for folder in path.relative_to(root).parts[:-1]]
    return next((part for part in parts if part), "train")


def _images(root: Path, files: Sequence[VocFile]) -> tuple[list[str], tuple[str, ...]]:
    """Return the image of each XML file, relative, and a notice on images without one."""
    tree = walk(root)
    by_stem: dict[str, list[str]] = {}
    for name in tree.images:
        by_stem.setdefault(name.rsplit(".", 1)[0], []).append(name)
    found, missing = [], []
    for file in files:
        folder = file.path.relative_to(root).parent.as_posix()
        if folder.split("/")[0] == "Annotations":
            folder = "/".join(["JPEGImages", *folder.split("/")[1:]])
        prefix = "" if folder == "." else f"{folder}/"
        # Of a file that was renamed the XML file's own name is right, and the one in it is not.
        candidates = by_stem.get(f"{prefix}{file.path.stem}", [])
        exact = [name for name in candidates if name.endswith(f"/{file.filename}") or name == file.filename]
        if len(exact or candidates) > 1:
            raise DataError(
                f"{file.path}: it may belong to {candidates[0]} or {candidates[1]}; name one of them in "
                "<filename>, or remove the other"
            )
        if not candidates:
            missing.append(f"{prefix}{file.filename or file.path.stem}")
        found.append((exact or candidates or [""])[0])
    if missing:
        raise DataError(
            f"{root}: {len(missing):,} of {len(files):,} XML files have no image beside them or in "
            f"JPEGImages: {named(missing)}; bring back the images, or remove the XML files"
        )
    twins = {name.rsplit(".", 1)[0] for name in found}
    alone = [name for name in tree.images if name.rsplit(".", 1)[0] not in twins and _an_image(name)]
    if not alone:
        return found, ()
    return found, (
        f"{len(alone):,} images have no XML file and are left out: {named(alone)}; one without <object> says "
        "that an image shows none",
    )


def _an_image(name: str) -> bool:
    """Return whether a file is no mask of VOC's segmentation."""
    return not name.startswith(("SegmentationClass/", "SegmentationObject/"))
