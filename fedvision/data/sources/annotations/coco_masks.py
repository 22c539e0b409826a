"""A class for each pixel out of COCO's polygons and run lengths.

Objects are laid over each other from the largest to the smallest, by their pixels, so that a small one on a
large one is seen; of equal ones the later annotation is on top. Crowds lie below all objects and are 255, as
are pixels that are none of the image's: neither trained on nor counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.data.boxes import Placement
from fedvision.data.dataset import Dataset
from fedvision.data.decoding import file_digest
from fedvision.data.decoding.decode_once import decode_once
from fedvision.data.decoding.placement import Located, sample
from fedvision.data.decoding.process_pool import Answer, PixelFormat
from fedvision.data.masks import IGNORED, MOST_CLASSES
from fedvision.data.naming import composed
from fedvision.data.sources.annotations.coco import CocoImage, CocoImages, CocoPaths, open_files
from fedvision.data.sources.annotations.reading import AnnotatedReading, masks_dataset, read_files
from fedvision.data.sources.annotations.records import class_order
from fedvision.data.sources.annotations.regions import region_mask
from fedvision.errors import DataError
from fedvision.shared_keys import takes_fields_of


@takes_fields_of(CocoPaths, AnnotatedReading)
def coco_masks(
    *,
    classes: Sequence[str] | None = None,
    background: str = "background",
    paths: CocoPaths,
    reading: AnnotatedReading,
) -> Dataset:
    """Read images and a class for each of their pixels from COCO JSON's polygons and run lengths.

    Smaller objects lie over larger ones; crowds and the bars of ``"pad"`` are 255, which is no class.

    Args:
        classes: Classes in the order of their numbers, the background among them; by default the background,
            then the categories in the order of their ids. A category without an object need not be there.
        background: The class of pixels in no object; a category of that name is the same class.
        paths: Which JSON files and images are read.
        reading: What all sources of annotated images share.

    Returns:
        Images uint8 [N, size, size, channels], classes uint8 [N, size, size].

    Raises:
        ValueError: A value is out of range.
        DataError: A JSON file or one of its entries is wrong, a file is missing, or a class above the 255th.
    """
    found, background = open_files(paths), composed(background)
    known = [background, *(name for name in found.categories if name != background)]
    where = str(found.files[0].path)
    names = class_order(classes, known, {background, *found.used()}, where)
    if len(names) > MOST_CLASSES:
        raise DataError(f"{where}: it has {len(names)} classes; a mask holds {MOST_CLASSES}")
    records, located, notices = read_files([image.record for image in found.images], found.root, reading)
    files = [str(file.path.absolute()) for file in found.files]
    entry = decode_once(
        reading.cache,
        found.root,
        (*files, *(record.name for record in records)),
        PixelFormat(reading.size, 1, reading.fit),
        what="annotated masks",
        number=len(records),
        meaning=("coco masks", names, background),
        digests=lambda: (
            *file_digest.contents(found.root, files),
            *(hashlib.sha256(f"{one}".encode()).digest() for one in located),
        ),
        make=lambda: _draw_all(found, located, names, reading.size, background),
    )
    drawn, vanished = (sum(column) for column in zip((0, 0), *entry.notes.values(), strict=True))
    lost = (
        f"{vanished:,} of {drawn:,} objects have no pixel at size = {reading.size}, as they are hidden or "
        "too small"
    )
    return masks_dataset(
        records,
        found.root,
        np.ascontiguousarray(entry.images[..., 0]),
        names,
        reading,
        (*notices, *((lost,) if vanished else ())),
    )


def _draw_all(
    found: CocoImages, located: Sequence[Located | str], names: Sequence[str], size: int, background: str
) -> Iterator[Answer]:
    """Yield each image's mask, noted with the objects that were drawn and those that vanished."""
    number = found.numbers(names)
    for image, one in zip(found.images, located, strict=True):
        if isinstance(one, str):
            yield [None], np.full((1, size, size, 1), IGNORED, np.uint8)
            continue
        picture = _draw(image, number, one.placement, size, names.index(background))
        yield [[picture.objects, picture.vanished]], picture.classes[None, ..., None]


class _Picture(NamedTuple):
    """One image's classes."""

    classes: NDArray[np.uint8]
    """uint8 [size, size]."""
    objects: int
    """How many were drawn, crowds left out."""
    vanished: int
    """Those of which no pixel is left."""


def _draw(
    image: CocoImage, number: Mapping[Any, int], place: Placement, size: int, background: int
) -> _Picture:
    def region(at: int) -> NDArray[np.bool_]:
        one = image.annotations[at]
        where = f"{image.file.path}, {one.place}"
        return region_mask(one.entry.get("segmentation"), place.width, place.height, where)

    # Drawn twice, first for their order: all masks of a large image at once would fill the memory.
    numbers = [at for at, _ in enumerate(image.annotations)]
    order = sorted(numbers, key=lambda at: (not image.annotations[at].crowd, -int(region(at).sum()), at))
    # Which object is on top at each pixel, 0 for none: what is left of each is counted after the sampling.
    whole = np.zeros((place.height, place.width), np.int64)
    for at in order:
        whole[region(at)] = at + 1
    classes = [IGNORED if one.crowd else number[one.category] for one in image.annotations]
    shown = sample(whole, place, size, -1)
    table = np.array([background, *classes, IGNORED], np.uint8)
    left = set(np.unique(shown).tolist())
    objects = [at for at, one in enumerate(image.annotations) if not one.crowd]
    return _Picture(table[shown], len(objects), sum(at + 1 not in left for at in objects))
