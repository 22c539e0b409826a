"""Which images and masks of a folder belong together, by their names or by lists of names.

An image's place is its name without its folder of images and its suffix; that of its mask is the same one, or
has a word such as ``mask`` beside it. Lists are text files such as Pascal VOC's: a name begins each line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedvision.data.decoding.decode import named
from fedvision.data.decoding.file_list import PARTS
from fedvision.data.decoding.scan import walk
from fedvision.data.paths import expand_home
from fedvision.data.sources.mask_files import masked_stem
from fedvision.data.sources.part_names import part_of
from fedvision.errors import DataError


class Pair(NamedTuple):
    """An image and its mask, relative to the folder."""

    place: str
    image: str
    mask: str
    part: str
    """``"train"``, ``"val"`` or ``"test"``."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where images and masks lie below a folder, and which of them are meant."""

    images: str = "images"
    """Name of the folders of images, such as ``"images"`` or ``"data/images"``."""
    masks: str = "masks"
    """Name of the folders of masks."""
    image_suffix: str = ""
    """How the files of images end, such as ``"_leftImg8bit.png"``; what is before it is the image's name, and
    files that end otherwise are left out. Empty takes all."""
    mask_suffix: str = ""
    """The same of masks, such as ``"_gtFine_labelIds.png"``."""
    names: Mapping[str, str] | None = None
    """Part (train, val, test) -> a text file, relative to ``path``, whose lines begin with the names of its
    images, without folder and suffix; images that no file lists are left out. By default folders are
    parts."""

    def __post_init__(self) -> None:
        names = self.names
        fits = isinstance(names, Mapping) and set(names) <= set(PARTS) and "train" in names
        if names is not None and not (fits and all(isinstance(file, str) for file in names.values())):
            raise ValueError(
                'names must be a table of lists, such as { train = "train.txt", val = "val.txt" }, with '
                f"train and perhaps val and test, not {names!r}"
            )


class _Found(NamedTuple):
    """What lies below a folder, each file by its place."""

    pictures: dict[str, str]
    masks: dict[str, str]
    elsewhere: list[str]
    """Images in no folder of either."""
    other_ends: list[str]
    """Images in such a folder that end otherwise."""


def find_pairs(root: Path, layout: Layout) -> tuple[list[Pair], tuple[str, ...]]:
    """Return the images with their masks by name, and notices on what is left out.

    Raises:
        DataError: There are none, one lacks the other, there are two for one, or a list is wrong.
    """
    found = _find(root, layout)
    _check_there(root, layout, found)
    pictures, part_by_place, notices = found.pictures, None, list(_notices(found, layout))
    if layout.names is not None:
        part_by_place = _listed(root, layout.names, pictures)
        if unlisted := [name for place, name in pictures.items() if place not in part_by_place]:
            notices.append(
                f"{len(unlisted):,} images are in no list of data.names and are left out: {named(unlisted)}"
            )
        pictures = {place: name for place, name in pictures.items() if place in part_by_place}
    mask_of = _matched(root, pictures, found.masks, listed=part_by_place is not None)
    parts = _folder_parts(root, pictures) if part_by_place is None else part_by_place
    pairs = [Pair(place, name, mask_of[place], parts[place]) for place, name in pictures.items()]
    return pairs, tuple(notices)


def _find(root: Path, layout: Layout) -> _Found:
    found = _Found({}, {}, [], [])
    for name in walk(root).images:
        is_mask, suffix, place = _kind(name, layout)
        if place is None:
            found.elsewhere.append(name)
        elif not name.endswith(suffix):
            found.other_ends.append(name)
        else:
            kind = found.masks if is_mask else found.pictures
            if place in kind:
                what = "mask" if is_mask else "image"
                raise DataError(
                    f"{root}: {kind[place]} and {name} are one {what} by their names; keep one of them, or "
                    f"say how one ends with data.{what}_suffix"
                )
            kind[place] = name
    return found


def _kind(name: str, layout: Layout) -> tuple[bool, str, str | None]:
    """Return whether a file is a mask, how it must end, and its place; None where it is in neither folder."""
    image = (False, layout.image_suffix, _below(name, layout.images, layout.image_suffix))
    mask = (True, layout.mask_suffix, _below(name, layout.masks, layout.mask_suffix))
    if layout.images != layout.masks:
        return mask if image[2] is None else image
    if image[2] is None:
        return image
    is_mask = name.endswith(layout.mask_suffix) if layout.mask_suffix else masked_stem(image[2]) is not None
    return mask if is_mask else image


def _below(name: str, folder: str, suffix: str) -> str | None:
    """Return a name without its suffix and the first folder called so; None where it lies in none."""
    *folders, file = name.split("/")
    stem = file.removesuffix(suffix) if suffix else file.rsplit(".", 1)[0]
    wanted = [part for part in folder.split("/") if part not in ("", ".")]
    if not wanted:
        return "/".join([*folders, stem])
    for start in range(len(folders) - len(wanted) + 1):
        if folders[start : start + len(wanted)] == wanted:
            return "/".join([*folders[:start], *folders[start + len(wanted) :], stem])
    return None


def _check_there(root: Path, layout: Layout, found: _Found) -> None:
    for key, word, folder, suffix, files in (
        ("images", "image", layout.images, layout.image_suffix, found.pictures),
        ("masks", "mask", layout.masks, layout.mask_suffix, found.masks),
    ):
        if files:
            continue
        others = f"; {len(found.elsewhere):,} images lie elsewhere" if found.elsewhere else ""
        ends = f" that end with data.{word}_suffix = {suffix!r}" if suffix else ""
        correct = f"data.{word}_suffix" if suffix and found.other_ends else "data.path"
        raise DataError(
            f"{root}: there are no {key} in {folder or 'it'}/{ends}{others}; name their folder with "
            f"data.{key}, or correct {correct}"
        )


def _notices(found: _Found, layout: Layout) -> Iterator[str]:
    if found.elsewhere:
        yield (
            f"{len(found.elsewhere):,} images lie in neither {layout.images}/ nor {layout.masks}/ and are "
            f"left out: {named(found.elsewhere)}"
        )
    if found.other_ends:
        yield (
            f"{len(found.other_ends):,} files do not end as data.image_suffix or data.mask_suffix says and "
            f"are left out: {named(found.other_ends)}"
        )


def _listed(root: Path, names: Mapping[str, str], pictures: Mapping[str, str]) -> dict[str, str]:
    """Return the part of each place that a list has.

    Raises:
        DataError: A list cannot be read or is empty, a name has no image, or is listed twice.
    """
    found: dict[str, tuple[str, str]] = {}
    for part, file in names.items():
        path, before = root / expand_home(file), len(found)
        for number, line in _lines(path, part):
            where = f"{path}, line {number}"
            place = next((one for one in (line, line.split()[0]) if one in pictures), None)
            if place is None:
                raise DataError(
                    f"{where}: {line.split()[0]} has no image; a line begins with the name of an image "
                    "without its folder and its suffix"
                )
            if place in found:
                raise DataError(f"{where}: {place} is in {found[place][1]} already; keep it in one of them")
            found[place] = part, where
        if len(found) == before:
            raise DataError(f"{path}: no line names an image; correct data.names.{part}")
    return {place: part for place, (part, _) in found.items()}


def _lines(path: Path, part: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that hold a name, with their numbers from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise DataError(f"{path}: this list cannot be read: {why}; correct data.names.{part}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


def _matched(
    root: Path, pictures: Mapping[str, str], masks: Mapping[str, str], *, listed: bool
) -> dict[str, str]:
    """Return the mask of each image by its place; masks of images that no list has are no orphans."""
    mask_of = dict[str, str]()
    orphans = []
    for place, name in masks.items():
        meant = place if place in pictures else masked_stem(place)
        if meant is None or meant not in pictures:
            orphans.append(name)
        elif meant in mask_of:
            raise DataError(
                f"{root}: {mask_of[meant]} and {name} are both the mask of {pictures[meant]}; keep one of "
                "them, or say how one ends with data.mask_suffix"
            )
        else:
            mask_of[meant] = name
    if orphans and not listed:
        raise DataError(
            f"{root}: {len(orphans):,} masks have no image: {named(orphans)}; call each as its image, remove "
            "it, or say how both end with data.image_suffix and data.mask_suffix"
        )
    if alone := [name for place, name in pictures.items() if place not in mask_of]:
        raise DataError(
            f"{root}: {len(alone):,} images have no mask: {named(alone)}; add masks of the same names, "
            "remove them, or list those that have one in data.names"
        )
    return mask_of


def _folder_parts(root: Path, pictures: Mapping[str, str]) -> dict[str, str]:
    """Return the part of each image: its outermost folder, where one of these is for training.

    Raises:
        DataError: Some images lie in no part.
    """
    parts = {place: part_of(place.split("/")[0]) if "/" in place else None for place in pictures}
    if "train" not in parts.values():
        return dict.fromkeys(pictures, "train")
    known = dict[str, str]()
    for place, part in parts.items():
        if part is None:
            raise DataError(
                f"{root}: {pictures[place]} lies in no folder train, test or val, as others do; move it"
            )
        known[place] = part
    return known
