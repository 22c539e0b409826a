"""A client's own labels -> the experiment's classes, so that machines that name things differently agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.naming import composed
from fedvision.data.own_classes import images_with, renumbered
from fedvision.data.targets import Targets, one_class
from fedvision.errors import DataError, nearest
from fedvision.formatting import listed

LEFT_OUT = -1


def destinations(
    own: Sequence[str], mapping: Mapping[str, str], classes: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return where each own class goes, and a sentence for each that goes nowhere.

    Args:
        own: The client's C' class names.
        mapping: Own name -> class of the experiment, or ``""``: leave its images out. Others keep their name.
        classes: The experiment's C classes, in the order of their labels.

    Returns:
        int64 [C'], a label below C or ``LEFT_OUT``, and what is wrong; empty when nothing is.
    """
    number = {composed(name): label for label, name in enumerate(classes)}
    mapping = {composed(name): composed(meant) for name, meant in mapping.items()}
    wrong = [
        f"label_map: this data has no label {name!r}{nearest(name, own)}"
        for name in mapping
        if name not in map(composed, own)
    ]
    target = np.full(len(own), LEFT_OUT, np.int64)
    for i, name in enumerate(own):
        name = composed(name)
        meant = mapping.get(name, name)
        if meant in number:
            target[i] = number[meant]
        elif meant or name not in mapping:
            mapped = f" (label_map: {meant!r})" if name in mapping else ""
            wrong.append(
                f"label {name!r}{mapped} is no class of the experiment; write {name!r} = its class, or "
                f'{name!r} = "" to leave it out, into [data.label_map]{nearest(meant, classes)}'
            )
    return target, tuple(wrong)


def relabel(dataset: Dataset, mapping: Mapping[str, str], classes: Sequence[str]) -> Dataset:
    """Return the images under the experiment's labels.

    Images stay the memory map they are, unless some are left out: then the others are copied to memory. Where
    an image may have several labels, a label that is left out is dropped and its images stay; so it is with
    boxes, and pixels of a class that is left out are of no class (``own_classes``).

    Args:
        dataset: As the client's data source gives it.
        mapping: As for ``destinations``.
        classes: The experiment's classes, in the order of their labels.

    Raises:
        DataError: A label is known to neither, every training image is left out, or images may have several
            labels, boxes or classes of pixels, and one of the experiment's is not named.
    """
    present = images_of(dataset)
    mapped = {composed(name) for name in mapping}
    own = [name for i, name in enumerate(dataset.classes) if present[i] or composed(name) in mapped]
    target, wrong = destinations(own, mapping, classes)
    if not one_class(dataset.train.labels):
        wrong = (*wrong, *unnamed(dataset.classes, mapping, classes))
    if wrong:
        raise DataError("; ".join(wrong))
    table = np.full(len(dataset.classes), LEFT_OUT, np.int64)
    table[[dataset.classes.index(name) for name in own]] = target
    train = _moved(dataset.train, table, len(classes))
    if not len(train):
        raise DataError("[data.label_map] leaves every training image out; map one label to a class")
    test = _moved(dataset.test, table, len(classes)) if dataset.test else None
    return Dataset(train=train, test=test if test else None, classes=tuple(classes), notices=dataset.notices)


def unnamed(own: Sequence[str], mapping: Mapping[str, str], classes: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence on labels of the experiment that data of several labels an image do not name, if any.

    An image without a label counts as one that shows nothing of it, and so do pixels of another class. That
    holds where somebody looked, which data that do not name the label do not say.

    Args:
        own: As for ``destinations``, all that the data name.
        mapping: As for ``destinations``.
        classes: As for ``destinations``.
    """
    target, _ = destinations(own, mapping, classes)
    missing = [name for label, name in enumerate(classes) if label not in target]
    if not missing:
        return ()
    return (
        f"this data does not say which images have {listed([repr(name) for name in missing])}, and all would "
        "count as without; where they were looked at for it and none has it, name it in data.classes, else "
        "this data is not for the experiment",
    )


def by_name(images: ImageSet, own: Sequence[str], classes: Sequence[str]) -> tuple[Targets, tuple[str, ...]]:
    """Return labels under which a model knows the classes of other data, found by their names alone.

    Args:
        images: N images.
        own: The data's C' class names, in the order of its labels.
        classes: The model's C class names, in the order of its logits.

    Returns:
        Labels int64 [N], each below C, or uint8 [N, C] where an image may have several, or targets [N, ...]
        of another form, and the model's classes of which there is no image.

    Raises:
        DataError: An image is of a class that the model does not know, or images may have several labels or
            classes and one of the model's is not named.
    """
    target, _ = destinations(own, {}, classes)
    counts = images_with(images.labels, len(own))
    unknown = [name for name, label, there in zip(own, target, counts, strict=True) if label < 0 and there]
    if unknown:
        raise DataError(
            f"the data has images of {listed([repr(name) for name in unknown])}, which the model does not "
            f"know; its classes are {listed(classes)}: name the data's classes as the model's, or leave "
            "those images out"
        )
    if not one_class(images.labels) and (wrong := unnamed(own, {}, classes)):
        raise DataError("; ".join(wrong))
    labels = renumbered(images.labels, target, len(classes))
    found = images_with(labels, len(classes))
    return labels, tuple(name for name, number in zip(classes, found, strict=True) if not number)


def images_of(dataset: Dataset) -> NDArray[np.int64]:
    """Return images that have, or show, each class or label [C'], training and test together."""
    parts = [dataset.train, *([dataset.test] if dataset.test else [])]
    counts: NDArray[np.int64] = np.sum(
        [images_with(part.labels, len(dataset.classes)) for part in parts], axis=0
    )
    return counts


def _moved(images: ImageSet, table: NDArray[np.int64], num_classes: int) -> ImageSet:
    labels = renumbered(images.labels, table, num_classes)
    retained = labels != LEFT_OUT if one_class(labels) else np.ones(len(labels), np.bool_)
    if retained.all():
        return dataclasses.replace(images, labels=labels)
    columns = {name: values[retained] for name, values in images.columns.items()}
    names = [name for name, keep in zip(images.names, retained.tolist(), strict=False) if keep]
    return dataclasses.replace(
        images,
        images=images.images[retained],
        labels=labels[retained],
        columns=columns,
        names=names,
        further=None if images.further is None else images.further[retained],
    )
