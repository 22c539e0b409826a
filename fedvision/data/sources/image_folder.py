"""Image folders: the names of folders are the classes.

::

    PATH/CLASS/*.png                          one tree; ``validation`` makes a test set
    PATH/{train,test,val}/CLASS/*.png         parts; test and val may be missing
    PATH/CLIENT/CLASS/*.png                   levels = ["client", "class"]: natural clients
    PATH/CLASS/{train,test,val}/*.png         levels = ["class", "split"]: parts below classes

The parts may hold further levels too: PATH/train/CLIENT/CLASS/*.png. They may be called Training, TEST,
valid, test_set and the like (``part_names``), or hint at it: seg_train, train1. A folder of the same name
inside a part is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.decode import named
from fedvision.data.decoding.file_list import Listing, Reading, resolve_classes, to_dataset
from fedvision.data.decoding.scan import IMAGE_SUFFIXES, Tree, walk
from fedvision.data.naming import composed
from fedvision.data.paths import expand
from fedvision.data.sources.mask_files import without_masks
from fedvision.data.sources.part_names import are_parts, hinted_part, part_of
from fedvision.errors import DataError
from fedvision.shared_keys import takes_fields_of

SPLIT = "split"
"""The level whose folders are parts, where they lie below classes or clients."""
_OTHERS = "convert them to PNG, DICOM and NIfTI slice by slice"


@takes_fields_of(Reading)
def image_folder(
    *, path: str, levels: Sequence[str] = ("class",), classes: Sequence[str] | None = None, reading: Reading
) -> Dataset:
    """Read a folder of images; each is decoded once and kept as pixels in the cache.

    Args:
        path: The folder. Folders at its top called train, test and val, or Training, test_set, seg_train and
            the like, are parts of the data set.
        levels: What the folders' names mean, from the outermost; ``"class"`` must be among them, the others
            become columns; ``"split"`` holds folders train, test and val.
        classes: Class names in the order of their labels; by default the folders' names, sorted, by value
            where all are numbers. Clients that train one model need the same list, though a client may lack
            some classes.
        reading: What all sources of image files share.

    Returns:
        Images uint8 [N, size, size, channels] as memory maps, and a column [N] for each further level.

    Raises:
        ValueError: A value is out of range.
        DataError: The folder or its layout is wrong, too many files cannot be read, or the cache cannot be
            used.
    """
    return to_dataset(_listing(path, levels, classes), reading)


class _Row(NamedTuple):
    """One image: its file, its part, and the folders of its levels."""

    name: str
    part: str
    folders: list[str]


def _listing(path: str, levels: Sequence[str], classes: Sequence[str] | None) -> Listing:
    _check_levels(levels)
    root, depth = expand(path), len(levels)
    tree = walk(root)
    pictures, masks = without_masks(tree.images, root)
    # A class may be called "train": it is a part only where folders for every level lie below it.
    tops = {name.split("/")[0] for name in pictures if name.count("/") > depth}
    hints = are_parts(tops) and "train" in map(hinted_part, tops)
    parted = SPLIT not in levels and (hints or "train" in map(part_of, tops))
    reader = (hinted_part if hints else part_of) if parted else None
    rows, strays = [], []
    for name in pictures:
        meant, folders = _part_and_levels(name.split("/")[:-1], reader, depth)
        if meant is None or len(folders) < depth:
            strays.append(name)
        elif len(folders) > depth:
            raise DataError(_too_deep(root, name, levels, len(folders)))
        else:
            rows.append(_Row(name, meant, [composed(folder) for folder in folders]))
    if not rows:
        raise DataError(_nothing(root, levels, strays, tree))
    values = np.array([row.folders for row in rows])
    columns = {level: values[:, i] for i, level in enumerate(levels)}
    parts = np.array([row.part for row in rows])
    if SPLIT in columns:
        parts = _parts(columns.pop(SPLIT), root)
    _refuse_parts(columns, classes, root)
    labels, names = _classes(columns.pop("class"), tree, levels, reader, classes, str(root))
    return Listing(
        root=root,
        names=[row.name for row in rows],
        labels=labels,
        classes=names,
        parts=parts,
        columns=columns,
        notices=(*_read_as(tops if hints and parted else ()), *_notices(tree, strays, parted), *masks),
    )


def _part_and_levels(
    folders: list[str], reader: Callable[[str], str | None] | None, depth: int
) -> tuple[str | None, list[str]]:
    """Return the part that a file's folders name first, and the folders of its levels.

    Args:
        folders: From the top.
        reader: Returns the part that a folder's name means; None where there are no parts.
        depth: Levels.
    """
    if reader is None:
        return "train", folders
    part = reader(folders[0]) if folders else None
    # Some archives are packed so: seg_train/seg_train/CLASS.
    doubled = part is not None and len(folders) > depth + 1 and folders[1] == folders[0]
    return part, folders[1 + doubled :]


def _is_doubled(folder: str, reader: Callable[[str], str | None] | None) -> bool:
    """Return whether a folder is a part's own inside it: seg_train/seg_train."""
    top, _, below = folder.partition("/")
    return reader is not None and top == below


def _check_levels(levels: Sequence[str]) -> None:
    good = isinstance(levels, list | tuple) and all(isinstance(level, str) and level for level in levels)
    if not good or list(levels).count("class") != 1 or len(set(levels)) < len(levels):
        raise ValueError(
            f'levels must be a list of different names, "class" among them, such as ["client", "class"], '
            f"not {levels!r}"
        )


def _parts(folders: NDArray[np.str_], root: Path) -> NDArray[np.str_]:
    """Return the parts that a level called ``SPLIT`` names."""
    for name in np.unique(folders).tolist():
        if part_of(name) is None:
            raise DataError(
                f"{root}: the level {SPLIT!r} has a folder {name!r}; it must be train, val or test"
            )
    return np.array([part_of(name) for name in folders.tolist()])


def _refuse_parts(columns: Mapping[str, NDArray[np.str_]], classes: Sequence[str] | None, root: Path) -> None:
    """Refuse folders that are parts of a data set and were taken for classes or clients.

    Raises:
        DataError: They are: test images would be trained on, or every image have the one class "train".
    """
    for level, values in columns.items():
        found = np.unique(values).tolist()
        if not are_parts(found) or (level == "class" and classes is not None):
            continue
        shown = named(found)
        if level == "class":
            raise DataError(
                f"{root}: the only folders of classes are {shown}, which are parts of a data set; put images "
                'into train/CLASS/ and test/CLASS/, or list them in a CSV file for use = "manifest"; if they '
                "are classes, name them in data.classes"
            )
        raise DataError(
            f"{root}: the folders of level {level!r} are {shown}, which are parts of a data set; name that "
            f"level {SPLIT!r} in data.levels, or set data.path so that they lie at the top"
        )


def _classes(
    values: NDArray[np.str_],
    tree: Tree,
    levels: Sequence[str],
    reader: Callable[[str], str | None] | None,
    given: Sequence[str] | None,
    where: str,
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels and class names; a folder without images is a class too."""
    at = list(levels).index("class")
    found = {folder: _part_and_levels(folder.split("/"), reader, at + 1) for folder in tree.folders}
    empty = {
        composed(below[at])
        for folder, (part, below) in found.items()
        if part is not None and len(below) == at + 1 and not _is_doubled(folder, reader)
    }
    names = resolve_classes(given, sorted(empty | set(values.tolist())), where)
    number = {name: label for label, name in enumerate(names)}
    return np.array([number[value] for value in values.tolist()], np.int64), names


def _too_deep(root: Path, name: str, levels: Sequence[str], depth: int) -> str:
    where = f"{root}/{name}: it lies {depth} folders deep, but levels = {list(levels)} names {len(levels)}"
    folders = name.split("/")[:-1]
    places = [place for place, folder in enumerate(folders) if hinted_part(folder) is not None]
    above = len(folders) - len(levels) - 1
    if above in places and above > 0:
        place = root.joinpath(*folders[:above])
        return f"{where}; {folders[above]} is a part of a data set: set data.path to {place}"
    if places:
        named_levels = [SPLIT if place == places[0] else f"level{place}" for place in range(len(folders))]
        named_levels[max((p for p in range(len(folders)) if p not in places), default=-1)] = "class"
        return (
            f"{where}; {folders[places[0]]} is a part of a data set: name its level {SPLIT!r}, such as "
            f"levels = {json.dumps(named_levels)}, or move the images to train/CLASS/ and test/CLASS/"
        )
    return (
        f'{where}; name every level, such as levels = ["client", "class"] or ["class", "{SPLIT}"], or move '
        "the images"
    )


def _nothing(root: object, levels: Sequence[str], strays: Sequence[str], tree: Tree) -> str:
    where = f"; {len(strays):,} lie elsewhere, such as {strays[0]}" if strays else ""
    pattern = "/".join(level.upper() for level in levels)
    others = f"; there are {_kinds(tree)}: {_OTHERS}" if tree.others and not strays else ""
    return (
        f"{root}: there are no images in {pattern}/ or train/{pattern}/{where}{others}; correct data.path or "
        "levels"
    )


def _read_as(folders: Iterable[str]) -> tuple[str, ...]:
    """Say which part of the data set folders were taken for whose names only hint at it."""
    taken = [f"{name} as {hinted_part(name)}" for name in sorted(folders) if part_of(name) is None]
    return (f"folders are read as parts of the data set: {named(taken)}",) if taken else ()


def _kinds(tree: Tree) -> str:
    return named(f"{count:,} {suffix}" for suffix, count in tree.others.most_common())


def _notices(tree: Tree, strays: Sequence[str], parted: bool) -> tuple[str, ...]:
    notices = []
    if strays:
        outside = (
            "outside the class folders of train, test and val" if parted else "outside the class folders"
        )
        notices.append(f"{len(strays):,} images lie {outside} and are left out: {named(strays)}")
    if tree.others:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        notices.append(
            f"{tree.others.total():,} files are no images by their suffix ({_kinds(tree)}); known: {known}"
        )
    return tuple(notices)
