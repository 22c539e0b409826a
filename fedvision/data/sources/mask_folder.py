"""A folder of images and one of masks, PNG files of the same names whose values are classes.

::

    PATH/images/*.jpg, PATH/masks/*.png                      ``validation`` makes a test set
    PATH/images/{train,test,val}/*, PATH/masks/{...}/*       parts below both
    PATH/{train,test,val}/images/*, PATH/{...}/masks/*       parts above both

``a.jpg`` has the mask ``a.png``, ``a_mask.png`` or ``mask_a.png``, at any depth below; where ``images`` and
``masks`` are one folder, the mask has such a word in its name. Public sets end names otherwise (Cityscapes),
or list the images that are meant (Pascal VOC, Oxford-IIIT Pet): ``image_suffix``, ``mask_suffix``, ``names``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.decode import named
from fedvision.data.decoding.file_list import Listing, Reading, to_dataset
from fedvision.data.naming import composed
from fedvision.data.paths import expand
from fedvision.data.sources.mask_code import mask_code, with_classes
from fedvision.data.sources.mask_pairs import Layout, find_pairs
from fedvision.data.sources.masked_files import read_masks
from fedvision.errors import DataError
from fedvision.shared_keys import takes_fields_of


@takes_fields_of(Layout, Reading)
def mask_folder(
    *,
    path: str,
    classes: Sequence[str] | None = None,
    values: Sequence[int] = (),
    colours: Sequence[Sequence[int]] = (),
    ignore: int | Sequence[int] = 255,
    columns: str = "",
    layout: Layout,
    reading: Reading,
) -> Dataset:
    """Read images with masks; both are decoded once and kept in the cache, and masks are held in memory.

    Args:
        path: The folder.
        classes: Class names in the order of their numbers; by default the numbers up to the highest one in a
            mask. Clients that train one model need the same list, though a client may lack some classes.
        values: The value of each class in the masks, such as [0, 255]; by default its number.
        colours: The colour [red, green, blue] of each class in masks that are pictures.
        ignore: The value, or values, of pixels that are neither trained on nor measured, unless ``values``
            has it. Without ``values`` it must be above the numbers of all classes; colours cannot be ignored.
        columns: A regular expression that is searched in each image's name, relative to ``path``; its named
            groups become columns: ``"(?P<patient>[^_/]+)_[0-9]+"``.
        layout: Which files are images and masks.
        reading: What all sources of image files share.

    Returns:
        Images uint8 [N, size, size, channels] as memory maps, masks uint8 [N, size, size], and a column [N]
        for each named group of ``columns``.

    Raises:
        ValueError: A value is out of range, or keys contradict each other.
        DataError: The folder or its layout is wrong, an image and a mask do not belong together, a mask
            cannot be read, too many images cannot be read, or the cache cannot be used.
    """
    code, root = mask_code(classes, values, colours, ignore=ignore), expand(path)
    pairs, notices = find_pairs(root, layout)
    files = [one.image for one in pairs]
    facts = columns_in(files, columns, root)
    found, known = read_masks(root, files, [one.mask for one in pairs], code, reading)
    settled = with_classes(code, found, str(root))
    if not known.all():
        void = [file for file, has in zip(files, known, strict=True) if not has]
        notices += (f"{len(void):,} images have no pixel of a class and are left out: {named(void)}",)
    listing = Listing(
        root=root,
        names=[file for file, has in zip(files, known, strict=True) if has],
        labels=found[known],
        classes=settled,
        parts=np.array([one.part for one in pairs])[known],
        columns={name: values[known] for name, values in facts.items()},
        notices=notices,
    )
    return to_dataset(listing, reading)


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
