"""A list of image files with labels, columns and parts, and how it becomes a ``Dataset``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.decoding.decode import Decoding, decode
from fedvision.data.naming import alike_notice, class_names, composed
from fedvision.data.partition.groups import majority, shared_groups
from fedvision.data.partition.partitioners import values_of
from fedvision.data.targets import Targets, strata
from fedvision.errors import DataError, nearest
from fedvision.formatting import plural
from fedvision.ranges import check_range

PARTS = ("train", "val", "test")
VAL = ("auto", "train", "test", "drop")
"""What becomes of validation images; ``auto``: the test set where there is none, else left out."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """N image files, not yet read."""

    root: Path
    """The folder that the names are relative to."""
    names: Sequence[str]
    """[N] file names."""
    labels: Targets
    """int64 [N], from 0, or uint8 [N, L]; or, with ``strata``, of another form [N, ...]."""
    classes: tuple[str, ...]
    """Class names; label c is ``classes[c]``."""
    parts: NDArray[np.str_]
    """[N], each one of ``PARTS``."""
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Other facts by name, each [N]."""
    notices: tuple[str, ...] = ()
    """Notices on the list itself."""
    strata: NDArray[np.int64] | None = None
    """int64 [N], from 0: by which ``validation`` is stratified; None goes by the labels."""


@dataclass(frozen=True, kw_only=True)
class Reading(Decoding):
    """The keys that every source of image files shares: how they are decoded, and which are measured on.

    Raises:
        ValueError: A value is out of range.
    """

    validation: float = 0.0
    """Share of the training images, stratified by class, by the rarest one where an image has several, that
    becomes the test set, in the place of one that there is."""
    group: str = ""
    """The column whose equal values belong together, such as a patient's images: neither ``validation`` nor
    the partition nor the holdout parts them."""
    val: str = "auto"
    """What becomes of val images: ``"train"``, ``"test"``, ``"drop"``, or ``"auto"``: the test set where
    there is none, else left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(at_least=0, below=1, validation=self.validation)
        _check_val(self.val)


def to_dataset(listing: Listing, reading: Reading) -> Dataset:
    """Decode a listing and split it into training and test images.

    Training and test images are two slices of one memory map: none is copied. A list of test images alone is
    one that a model can be measured on.

    Args:
        listing: The files.
        reading: How they are decoded, and which are for the test.

    Raises:
        ValueError: ``group`` or ``validation`` does not fit the list.
        DataError: As for ``decode``, or no training image is left of those that there were.
    """
    if reading.group and reading.group not in listing.columns:
        known = ", ".join(sorted(listing.columns)) or "none"
        raise ValueError(f"group = {reading.group!r}: there is no such column; there are: {known}")
    order, trained, notices = _arrange(listing, reading)
    decoded = decode(listing.root, [listing.names[i] for i in order.tolist()], reading)
    cut = int(np.searchsorted(decoded.readable, trained))
    if trained:
        _require_training(cut, listing.root)
    chosen = order[decoded.readable]
    train, test = (
        _image_set(listing, decoded.images[part], chosen[part], reading.group) for part in _halves(cut)
    )
    shared = shared_groups(train, test)
    return Dataset(
        train=train,
        test=test if len(test) else None,
        classes=listing.classes,
        notices=(
            *listing.notices,
            *decoded.notices,
            *notices,
            *shared,
            *alike_notice("classes", listing.classes),
        ),
    )


def resolve_val(val: str, *, has_test: bool) -> str:
    """Return what becomes of validation images: ``"train"``, ``"test"`` or ``"drop"``.

    Raises:
        ValueError: ``val`` is not one of ``VAL``.
    """
    _check_val(val)
    if val == "auto":
        return "drop" if has_test else "test"
    return val


def left_out(count: int) -> str:
    """Return the notice on validation images that nothing uses."""
    return f'{count:,} validation images are left out; val = "train" or "test" uses them'


def set_aside_notice(tested: int, measured: int) -> tuple[str, ...]:
    """Return the notice on test images in whose place training images are measured on; none without any.

    Args:
        tested: Test images that are left out.
        measured: Training images in their place.
    """
    if not tested:
        return ()
    images, place = plural(tested, "test image"), plural(measured, "training image")
    return (f"{images} left out: data.validation measures on {place} instead",)


def resolve_classes(given: Sequence[str] | None, found: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the class names in the order of their labels.

    Clients that train one model must agree on this order, though a client may lack some classes.

    Args:
        given: As written in the experiment, or None.
        found: What the data holds, in any order.
        where: Place for messages.

    Raises:
        ValueError: ``given`` is no list of different names.
        DataError: The data holds a class that is not among the given ones, or none at all, or names that are
            none (``naming.class_names``).
    """
    if not found:
        raise DataError(f"{where}: there are no classes; it holds no labelled images")
    if given is None:
        return tuple(class_names(found, where))
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given) or not given:
        raise ValueError(f'classes must be a list of names such as ["cat", "dog"], not {given!r}')
    given = [composed(name) for name in given]
    if len(set(given)) < len(given):
        raise ValueError(f"classes must be different names, not {list(given)}")
    for name in found:
        if composed(name) not in given:
            raise DataError(f"{where}: class {name!r} is not in data.classes{nearest(name, given)}")
    return tuple(given)


def stratified_order(labels: Indices, names: Sequence[str]) -> tuple[Indices, NDArray[np.float64]]:
    """Order images so that any last share of them is stratified by class.

    Image i of the n of its class, shuffled by a digest of its name, has rank (i + 1/2) / n; the order is by
    rank. So the last share v holds n v images of each class, rounded, and the same images whatever is added
    to other classes; and as the order does not depend on v, decoded images serve every v.

    Args:
        labels: int64 [N], from 0.
        names: [N] different names.

    Returns:
        Image numbers int64 [N] in that order, and their ranks float64 [N], rising, in (0, 1).
    """
    shuffle = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    order = np.array(sorted(range(len(names)), key=lambda i: (labels[i], shuffle[i])), np.int64)
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    ranks = (np.arange(len(labels)) - starts[labels[order]] + 0.5) / counts[labels[order]]
    by_rank = np.argsort(ranks, kind="stable")
    return order[by_rank], ranks[by_rank]


def grouped_order(
    labels: Indices, column: NDArray[Any], names: Sequence[str]
) -> tuple[Indices, NDArray[np.float64]]:
    """Order images as ``stratified_order``, but whole groups by their most frequent label.

    A group has the rank of its middle image among those of the groups of its label; all its images have it,
    so that no cut by rank parts them.

    Args:
        labels: int64 [N], from 0.
        column: [N]; equal values are one group.
        names: [N] different names.

    Returns:
        Image numbers int64 [N] in that order, and their ranks float64 [N], rising, in (0, 1).

    Raises:
        DataError: Some images have no value in the column.
    """
    values, groups = values_of(column, "the column that data.group names")
    items, groups = majority(labels, groups)
    shuffle = [hashlib.sha256(value.encode(errors="surrogateescape")).digest() for value in values]
    order = np.array(sorted(range(len(items)), key=lambda i: (items[i], shuffle[i])), np.int64)
    sizes, ends = np.bincount(groups)[order], np.bincount(items, np.bincount(groups))
    before = np.cumsum(sizes) - sizes
    starts = before[np.searchsorted(items[order], items[order])]
    rank = np.empty(len(items))
    rank[order] = (before - starts + sizes / 2) / ends[items[order]]
    # Groups of equal rank stay apart, and images of a group in the order of their names.
    by_rank = np.lexsort((np.argsort(np.argsort(names)), groups, rank[groups]))
    return by_rank, rank[groups][by_rank]


def _check_val(val: str) -> None:
    if val not in VAL:
        raise ValueError(f"val must be one of {', '.join(VAL)}, not {val!r}")


def _arrange(listing: Listing, reading: Reading) -> tuple[Indices, int, tuple[str, ...]]:
    """Return image numbers, training images first, how many of them train, and notices."""
    validation, group = reading.validation, reading.group
    fate = resolve_val(reading.val, has_test=bool(np.any(listing.parts == "test")))
    parts = np.where(listing.parts == "val", fate, listing.parts)
    dropped = int(np.count_nonzero(parts == "drop"))
    notices = (left_out(dropped),) if dropped else ()
    train, test = np.flatnonzero(parts == "train"), np.flatnonzero(parts == "test")
    if len(test) and not validation:
        return np.concatenate([train, test]), len(train), notices
    _require_training(len(train), listing.root)
    names = [listing.names[i] for i in train.tolist()]
    own = strata(listing.labels[train]) if listing.strata is None else listing.strata[train]
    if group:
        order, ranks = grouped_order(own, listing.columns[group][train], names)
    else:
        order, ranks = stratified_order(own, names)
    cut = int(np.searchsorted(ranks, 1 - validation))
    if group and validation and cut == len(train):
        raise ValueError(f"validation = {validation} is less than any group of column {group!r}; raise it")
    _require_training(cut, listing.root)
    aside = set_aside_notice(len(test), len(train) - cut) if validation else ()
    return train[order], cut, (*notices, *aside)


def _require_training(images: int, root: Path) -> None:
    if images == 0:
        raise DataError(f"{root}: no training image is left; see its parts, data.val and data.validation")


def _halves(cut: int) -> tuple[slice, slice]:
    return slice(None, cut), slice(cut, None)


def _image_set(listing: Listing, images: NDArray[np.uint8], numbers: Indices, group: str) -> ImageSet:
    columns = {name: values[numbers] for name, values in listing.columns.items()}
    names = [listing.names[i] for i in numbers.tolist()]
    return ImageSet(images=images, labels=listing.labels[numbers], columns=columns, names=names, group=group)
