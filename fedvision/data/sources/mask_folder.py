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
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.decode import Decoding, named
from fedvision.data.decoding.file_list import Listing, to_dataset
from fedvision.data.naming import composed
from fedvision.data.paths import expand
from fedvision.data.sources.mask_code import mask_code, with_classes
from fedvision.data.sources.mask_pairs import Layout, find_pairs
from fedvision.data.sources.masked_files import read_masks
from fedvision.errors import DataError
from fedvision.ranges import check_range


def mask_folder(
    *,
    path: str,
    size: int,
    images: str = "images",
    masks: str = "masks",
    image_suffix: str = "",
    mask_suffix: str = "",
    names: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    values: Sequence[int] = (),
    colours: Sequence[Sequence[int]] = (),
    ignore: int | Sequence[int] = 255,
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
    """Read images with masks; both are decoded once and kept in the cache, and masks are held in memory.

    Args:
        path: The folder.
        size: Side of the square images and masks in pixels.
        images: Name of the folders of images, such as ``"images"`` or ``"data/images"``.
        masks: Name of the folders of masks.
        image_suffix: How the files of images end, such as ``"_leftImg8bit.png"``; what is before it is the
            image's name, and files that end otherwise are left out. Empty takes all.
        mask_suffix: The same of masks, such as ``"_gtFine_labelIds.png"``.
        names: Part (train, val, test) -> a text file, relative to ``path``, whose lines begin with the names
            of its images, without folder and suffix; images that no file lists are left out. By default
            folders are parts.
        classes: Class names in the order of their numbers; by default the numbers up to the highest one in a
            mask. Clients that train one model need the same list, though a client may lack some classes.
        values: The value of each class in the masks, such as [0, 255]; by default its number.
        colours: The colour [red, green, blue] of each class in masks that are pictures.
        ignore: The value, or values, of pixels that are neither trained on nor measured, unless ``values``
            has it. Without ``values`` it must be above the numbers of all classes; colours cannot be ignored.
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
        val: What becomes of val images: ``"train"``, ``"test"``, ``"drop"``, or ``"auto"``: the test set
            where there is none, else left out.
        max_unreadable: Share of images that may be unreadable; they are left out and named.
        cache: Folder of decoded images and masks; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded.
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
    layout = Layout(
        images=images, masks=masks, image_suffix=image_suffix, mask_suffix=mask_suffix, names=names
    )
    pairs, notices = find_pairs(root, layout)
    files = [one.image for one in pairs]
    facts = columns_in(files, columns, root)
    found, known = read_masks(root, files, [one.mask for one in pairs], code, how)
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
        group=group,
    )
    return to_dataset(listing, how, val=val, validation=validation)


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
