"""Masks beside images: ``cat/1_mask.png`` outlines what ``cat/1.png`` shows and is no image of a cat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fedvision.data.decoding.decode import named
from fedvision.errors import DataError

_PATTERN = r"(mask|masks|seg|segmentation|annotation|annotated|label|labels|gt|groundtruth|ground_truth)"
_AFTER = re.compile(rf"(?P<image>.+?)[ _.-]+{_PATTERN}([ _-]?\d+)?", re.IGNORECASE)
_BEFORE = re.compile(rf"{_PATTERN}[ _.-]+(?P<image>.+)", re.IGNORECASE)
_FOLDERS = frozenset(
    "mask masks segmentation segmentations annotation annotations labels groundtruth gt".split()
)
_IMAGES = frozenset("image images img imgs".split())


def without_masks(names: Sequence[str], root: Path) -> tuple[list[str], tuple[str, ...]]:
    """Leave out files that are masks of images beside them by their name.

    Args:
        names: Files, relative, with ``/``.
        root: Their folder, for messages.

    Returns:
        The others, in order, and a sentence on the masks, if there are any.

    Raises:
        DataError: A whole folder of masks lies beside one of images: its name would be a class or a client.
    """
    stems = {name.rsplit(".", 1)[0] for name in names}
    retained: list[str] = []
    masks: list[str] = []
    for name in names:
        (masks if _beside(name, stems) else retained).append(name)
        if (images := _folder_of_masks(name, stems)) is not None:
            raise DataError(
                f"{root}/{name}: it has the name of a mask of {images}; move the folders of masks out of "
                "data.path and list the images as CLASS/*.png"
            )
    if not masks:
        return retained, ()
    sentence = (
        f"{len(masks):,} files are masks of images beside them by their name, and left out: {named(masks)}"
    )
    return retained, (sentence,)


def masked_stem(place: str) -> str | None:
    """Return the name of the image whose mask a file is by its own name, both without suffix, else None."""
    folder, slash, stem = place.rpartition("/")
    match = _AFTER.fullmatch(stem) or _BEFORE.fullmatch(stem)
    return None if match is None else f"{folder}{slash}{match['image']}"


def _beside(name: str, stems: set[str]) -> bool:
    folder, _, file = name.rpartition("/")
    stem = file.rsplit(".", 1)[0]
    found = [pattern.fullmatch(stem) for pattern in (_AFTER, _BEFORE)]
    prefix = f"{folder}/" if folder else ""
    return any(match is not None and prefix + match["image"] in stems for match in found)


def _folder_of_masks(name: str, stems: set[str]) -> str | None:
    """Return the image that a file in a folder of masks belongs to, if there is one in a folder of images."""
    *folders, file = name.rsplit(".", 1)[0].split("/")
    for place, folder in enumerate(folders):
        if folder.lower() not in _FOLDERS:
            continue
        match = _AFTER.fullmatch(file) or _BEFORE.fullmatch(file)
        for twin in {variant for one in _IMAGES for variant in (one, one.title(), one.upper())}:
            for stem in {file, match["image"] if match else file}:
                image = "/".join([*folders[:place], twin, *folders[place + 1 :], stem])
                if image in stems:
                    return image
    return None
