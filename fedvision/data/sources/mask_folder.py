"""A folder of images and one of masks, PNG files of the same names whose values are classes.

::

    PATH/images/*.jpg, PATH/masks/*.png                      ``validation`` makes a test set
    PATH/images/{train,test,val}/*, PATH/masks/{...}/*       parts below both
    PATH/{train,test,val}/images/*, PATH/{...}/masks/*       parts above both

``a.jpg`` has the mask ``a.png``, ``a_mask.png`` or ``mask_a.png``, at any depth below; where ``images`` and
``masks`` are one folder, the mask has such a word in its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.decode import Decoding, named
from fedvision.data.decoding.file_list import Listing, to_dataset
from fedvision.data.decoding.scan import walk
from fedvision.data.naming import composed
from fedvision.data.paths import expand
from fedvision.data.sources.mask_code import mask_code, with_classes
from fedvision.data.sources.mask_files import masked_stem
from fedvision.data.sources.masked_files import read_masks
from fedvision.data.sources.part_names import part_of
from fedvision.errors import DataError
from fedvision.ranges import check_range


def mask_folder(
    *,
    path: str,
    size: int,
    images: str = "images",
    masks: str = "masks",
    classes: Sequence[str] | None = None,
    values: Sequence[int] = (),
    colours: Sequence[Sequence[int]] = (),
    ignore: int = 255,
    columns: str = "",
    channels: int = 3,
    fit: str = "crop",
    range: float = 0.0,
    validation: float = 0.0,
    group: str = "",
    val: str = "auto",
    max_unreadable: float = 0.01,
    cache: str = "",
    workers: int = 0,
) -> Dataset:
    """Read images with masks; images are decoded once and kept in the cache, masks are held in memory.

    Args:
        path: The folder.
        size: Side of the square images and masks in pixels.
        images: Name of the folders of images.
        masks: Name of the folders of masks.
        classes: Class names in the order of their numbers; by default the numbers up to the highest one in a
            mask. Clients that train one model need the same list, though a client may lack some classes.
        values: The value of each class in the masks, such as [0, 255]; by default its number.
        colours: The colour [red, green, blue] of each class in masks that are pictures.
        ignore: The value of pixels that are neither trained on nor measured, unless ``values`` has it.
        columns: A regular expression that is searched in each image's name, relative to ``path``; its named
            groups become columns: ``"(?P<patient>[^_/]+)_[0-9]+"``.
        channels: 1 for gray, 3 for RGB.
        fit: ``"crop"`` (shorter side to ``size``, then the centre), ``"stretch"``, ``"pad"`` (black bars,
            which are ignored), or ``"exact"``: files of another size cannot be read.
        range: The value that is white, such as 1023 for 10 bits in 16-bit files; 0 goes by the file.
        validation: Share of the training images, stratified by the rarest class in each, that becomes the
            test set, in the place of one that there is.
        group: The column whose equal values belong together, such as a patient's images: neither
            ``validation`` nor the partition nor the holdout parts them.
        val: What becomes of a val folder: ``"train"``, ``"test"``, ``"drop"``, or ``"auto"``: the test set
            where there is none, else left out.
        max_unreadable: Share of images that may be unreadable; they are left out and named.
        cache: Folder of decoded images; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded.
        workers: Processes that decode; 0 is one per CPU core where that pays.

    Returns:
        Images uint8 [N, size, size, channels] as memory maps, masks uint8 [N, size, size], and a column [N]
        for each named group of ``columns``.

    Raises:
        ValueError: A value is out of range, or keys contradict each other.
        DataError: The folder or its layout is wrong, an image and a mask do not belong together, a mask
            cannot be read, too many images cannot be read, or the cache cannot be used.
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
    check_range(at_least=0, below=1, validation=validation)
    code, root = mask_code(classes, values, colours, ignore=ignore), expand(path)
    pairs, notices = _pairs(root, images, masks)
    names = [one.image for one in pairs]
    facts = columns_in(names, columns, root)
    found = read_masks(root, names, [one.mask for one in pairs], code, how)
    listing = Listing(
        root=root,
        names=names,
        labels=found,
        classes=with_classes(code, found, str(root)),
        parts=_parts(pairs, root),
        columns=facts,
        notices=notices,
        group=group,
    )
    return to_dataset(listing, how, val=val, validation=validation)


class _Pair(NamedTuple):
    """An image and its mask, relative to the folder."""

    place: str
    """The image's name without its folder of images and its suffix."""
    image: str
    mask: str


def _pairs(root: Path, images: str, masks: str) -> tuple[list[_Pair], tuple[str, ...]]:
    """Return the images with their masks by name, and a notice on what lies elsewhere.

    Raises:
        DataError: There are none, one lacks the other, or there are two for one.
    """
    pictures, drawn, strays = dict[str, str](), dict[str, str](), []
    both = images == masks
    for name in walk(root).images:
        place, is_mask = _below(name, images), False
        if both and place is not None:
            is_mask = masked_stem(place) is not None
        elif place is None:
            place, is_mask = _below(name, masks), True
        if place is None:
            strays.append(name)
            continue
        kind = drawn if is_mask else pictures
        if place in kind:
            what = "mask" if is_mask else "image"
            raise DataError(
                f"{root}: {kind[place]} and {name} are one {what} by their names; keep one of them"
            )
        kind[place] = name
    _check_there(root, images, masks, len(pictures), len(drawn), len(strays))
    pairs = _matched(root, pictures, drawn)
    outside = (
        f"{len(strays):,} images lie in neither {images}/ nor {masks}/ and are left out: {named(strays)}"
    )
    return pairs, (outside,) if strays else ()


def _below(name: str, folder: str) -> str | None:
    """Return a name without its suffix and the first folder called so; None where it lies in none."""
    *folders, file = name.split("/")
    stem = file.rsplit(".", 1)[0]
    wanted = [part for part in folder.split("/") if part not in ("", ".")]
    if not wanted:
        return "/".join([*folders, stem])
    for start in range(len(folders) - len(wanted) + 1):
        if folders[start : start + len(wanted)] == wanted:
            return "/".join([*folders[:start], *folders[start + len(wanted) :], stem])
    return None


def _check_there(root: Path, images: str, masks: str, pictures: int, drawn: int, strays: int) -> None:
    for key, folder, count in (("images", images, pictures), ("masks", masks, drawn)):
        if not count:
            others = f"; {strays:,} images lie elsewhere" if strays else ""
            raise DataError(
                f"{root}: there are no {key} in {folder or 'it'}/{others}; name their folder with "
                f"data.{key}, or correct data.path"
            )


def _matched(root: Path, pictures: dict[str, str], drawn: dict[str, str]) -> list[_Pair]:
    mask_of = dict[str, str]()
    orphans = []
    for place, name in drawn.items():
        meant = place if place in pictures else masked_stem(place)
        if meant is None or meant not in pictures:
            orphans.append(name)
        elif meant in mask_of:
            raise DataError(
                f"{root}: {mask_of[meant]} and {name} are both the mask of {pictures[meant]}; keep one of "
                "them"
            )
        else:
            mask_of[meant] = name
    if orphans:
        raise DataError(
            f"{root}: {len(orphans):,} masks have no image: {named(orphans)}; call each as its image, or "
            "remove it"
        )
    if alone := [name for place, name in pictures.items() if place not in mask_of]:
        raise DataError(
            f"{root}: {len(alone):,} images have no mask: {named(alone)}; add masks of the same names, or "
            "remove them"
        )
    return [_Pair(place, name, mask_of[place]) for place, name in pictures.items()]


def _parts(pairs: Sequence[_Pair], root: Path) -> NDArray[np.str_]:
    """Return the part of each image: its outermost folder, where one of these is for training.

    Raises:
        DataError: Some images lie in no part.
    """
    outermost = [one.place.split("/")[0] if "/" in one.place else "" for one in pairs]
    parts = [part_of(folder) for folder in outermost]
    if "train" not in parts:
        return np.array(["train"] * len(pairs))
    if None in parts:
        raise DataError(
            f"{root}: {pairs[parts.index(None)].image} lies in no folder train, test or val, as others do; "
            "move it"
        )
    return np.array(parts)


def columns_in(names: Sequence[str], pattern: str, root: Path) -> dict[str, NDArray[np.str_]]:
    """Return the named groups of a regular expression in names, each [N]; empty text where one is not there.

    Raises:
        ValueError: It is no regular expression, or names no group.
        DataError: It is not in a name.
    """
    if not pattern:
        return {}
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"columns is no regular expression: {error}") from error
    if not compiled.groupindex:
        raise ValueError(f"columns = {pattern!r} names no group; write (?P<patient>...) around what is meant")
    found = [compiled.search(name) for name in names]
    if None in found:
        raise DataError(f"{root}: data.columns = {pattern!r} is not in the name {names[found.index(None)]}")
    return {
        column: np.array([composed(one[column] or "") for one in found if one is not None])
        for column in compiled.groupindex
    }
