"""Image folders: the names of folders say what an image shows.

::

    PATH/CLASS/*.png                          one tree; ``validation`` makes a test set
    PATH/{train,test,val}/CLASS/*.png         parts; test and val may be missing
    PATH/CLIENT/CLASS/*.png                   levels = ["client", "class"]: natural clients

The parts may hold further levels too: PATH/train/CLIENT/CLASS/*.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedvision.data.decode import Decoding, named
from fedvision.data.images import Dataset
from fedvision.data.listing import Listing, settle_classes, to_dataset
from fedvision.data.places import expand
from fedvision.data.walk import IMAGE_SUFFIXES, Tree, walk
from fedvision.errors import DataError

_PARTS: Mapping[str, str] = {
    "train": "train",
    "test": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


def image_folder(
    *,
    path: str,
    size: int,
    channels: int = 3,
    fit: str = "crop",
    range: float = 0.0,
    levels: Sequence[str] = ("class",),
    classes: Sequence[str] | None = None,
    validation: float = 0.0,
    val: str = "auto",
    max_unreadable: float = 0.01,
    cache: str = "",
    workers: int = 0,
) -> Dataset:
    """Read a folder of images; each is decoded once and kept as pixels in the cache.

    Args:
        path: The folder.
        size: Side of the square images in pixels.
        channels: 1 for gray, 3 for RGB.
        fit: ``"crop"`` (shorter side to ``size``, then the centre), ``"stretch"`` or ``"pad"`` (black bars).
        range: The value that is white, such as 1023 for 10 bits in 16-bit files; 0 goes by the file.
        levels: What the folders' names mean, from the outermost; ``"class"`` must be among them, the others
            become columns.
        classes: Class names in the order of their labels; by default the folders' names, sorted. Clients that
            train one model need the same list, though a client may lack some classes.
        validation: Share of the training images, stratified by class, that becomes the test set.
        val: What becomes of a val folder: ``"train"``, ``"test"``, ``"drop"``, or ``"auto"``: the test set
            where there is none, else left out.
        max_unreadable: Share of files that may be unreadable; they are left out and named.
        cache: Folder of decoded images; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded.
        workers: Processes that decode; 0 is one per CPU core.

    Returns:
        Images uint8 [N, size, size, channels] as memory maps, and a column [N] for each further level.

    Raises:
        ValueError: A value is out of range.
        DataError: The folder or its layout is wrong, too many files cannot be read, or the cache cannot be
            used.
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
    return to_dataset(_listing(path, levels, classes), how, val=val, validation=validation)


def _listing(path: str, levels: Sequence[str], classes: Sequence[str] | None) -> Listing:
    _check_levels(levels)
    root, depth = expand(path), len(levels)
    tree = walk(root)
    # A class may be called "train": it is a part only where folders for every level lie below it.
    parted = any(name.startswith("train/") and name.count("/") > depth for name in tree.images)
    rows, strays = [], []
    for name in tree.images:
        part, *folders = name.split("/")[:-1] if parted else ["train", *name.split("/")[:-1]]
        if (parted and part not in _PARTS) or len(folders) < depth:
            strays.append(name)
        elif len(folders) > depth:
            raise DataError(_too_deep(f"{root}/{name}", levels, len(folders)))
        else:
            rows.append((name, _PARTS[part], folders))
    if not rows:
        raise DataError(_nothing(root, levels, strays))
    values = np.array([folders for _, _, folders in rows])
    columns = {level: values[:, i] for i, level in enumerate(levels)}
    labels, names = _classes(columns.pop("class"), tree, levels, parted, classes, str(root))
    return Listing(
        root=root,
        names=[name for name, _, _ in rows],
        labels=labels,
        classes=names,
        parts=np.array([part for _, part, _ in rows]),
        columns=columns,
        notices=_notices(tree, strays, parted),
    )


def _check_levels(levels: Sequence[str]) -> None:
    good = isinstance(levels, list | tuple) and all(isinstance(level, str) and level for level in levels)
    if not good or list(levels).count("class") != 1 or len(set(levels)) < len(levels):
        raise ValueError(
            f'levels must be a list of different names, "class" among them, such as ["client", "class"], '
            f"not {levels!r}"
        )


def _classes(
    values: NDArray[np.str_],
    tree: Tree,
    levels: Sequence[str],
    parted: bool,
    given: Sequence[str] | None,
    where: str,
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels and class names; a folder without images is a class too."""
    at = list(levels).index("class") + parted
    folders = (folder.split("/") for folder in tree.folders)
    empty = {
        folder[at] for folder in folders if len(folder) == at + 1 and (not parted or folder[0] in _PARTS)
    }
    names = settle_classes(given, sorted(empty | set(values.tolist())), where)
    number = {name: label for label, name in enumerate(names)}
    return np.array([number[value] for value in values.tolist()], np.int64), names


def _too_deep(name: str, levels: Sequence[str], depth: int) -> str:
    return (
        f"{name}: it lies {depth} folders deep, but levels = {list(levels)} names {len(levels)}; name every "
        'level, such as levels = ["client", "class"], or move the images'
    )


def _nothing(root: object, levels: Sequence[str], strays: Sequence[str]) -> str:
    where = f"; {len(strays):,} lie elsewhere, such as {strays[0]}" if strays else ""
    pattern = "/".join(level.upper() for level in levels)
    return (
        f"{root}: there are no images in {pattern}/ or train/{pattern}/{where}; correct data.path or levels"
    )


def _notices(tree: Tree, strays: Sequence[str], parted: bool) -> tuple[str, ...]:
    notices = []
    if strays:
        outside = "outside train, test and val" if parted else "outside the class folders"
        notices.append(f"{len(strays):,} images lie {outside} and are left out: {named(strays)}")
    if tree.others:
        kinds = named(f"{count:,} {suffix}" for suffix, count in tree.others.most_common())
        known = " ".join(sorted(IMAGE_SUFFIXES))
        notices.append(
            f"{tree.others.total():,} files are no images by their suffix ({kinds}); known: {known}"
        )
    return tuple(notices)
