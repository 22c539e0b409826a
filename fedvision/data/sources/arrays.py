"""Arrays as they are: scikit-learn's digits, and .npz files in MedMNIST's layout."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.decoding.file_list import left_out, resolve_classes, resolve_val
from fedvision.data.decoding.value_range import dark_images
from fedvision.data.paths import expand
from fedvision.data.sources.npz_archive import Archive
from fedvision.data.sources.validation_share import with_validation
from fedvision.data.targets import several
from fedvision.errors import DataError
from fedvision.ranges import check_range

_CHANNELS = 4
"""Images with more channels than gray, colour and alpha are seldom; volumes have 28 and more slices."""
_DIGITS = "datasets/data/digits.csv.gz"
"""Scikit-learn's file: 64 pixels and the label a line."""
_EVERY = 5
"""Of each class, every fifth digit is for the test."""


def digits(*, validation: float = 0.0) -> Dataset:
    """Return 1,797 handwritten digits that scikit-learn brings along: real images without a download.

    UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998): pixels 0..16, here 0..255.
    Every fifth image of each class, in the set's order, is for the test: 1,442 and 355 images.

    Args:
        validation: Share of the training images, stratified by class, that becomes the test set, in the
            place of the one that there is.

    Returns:
        Images uint8 [N, 8, 8, 1] and ten classes.

    Raises:
        ValueError: ``validation`` is out of range.
    """
    check_range(at_least=0, below=1, validation=validation)
    pixels, labels = _read_digits()
    images = np.round(pixels * (255 / 16)).astype(np.uint8)[..., None]
    place = np.empty(len(labels), np.int64)
    for label in range(10):
        of_class = labels == label
        place[of_class] = np.arange(of_class.sum())
    tested = place % _EVERY == _EVERY - 1
    train, test = (ImageSet(images=images[part], labels=labels[part]) for part in (~tested, tested))
    whole = Dataset(train=train, test=test, classes=tuple(map(str, range(10))))
    return with_validation(whole, validation)


def _read_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return pixels [N, 8, 8] and labels [N] of scikit-learn's digits.

    From its file where that is found: importing scikit-learn takes seconds.
    """
    package = find_spec("sklearn")
    file = Path(package.origin).parent / _DIGITS if package and package.origin else None
    if file and file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target.astype(np.int64)


def npz(
    *,
    path: str,
    val: str = "auto",
    validation: float = 0.0,
    classes: Sequence[str] | None = None,
    channels: int = 0,
) -> Dataset:
    """Read an .npz file in MedMNIST's layout.

    Arrays ``train_images`` and ``train_labels``, and likewise ``val_`` and ``test_``, which may be missing.
    Images are uint8 [N, H, W] or [N, H, W, channels], labels whole numbers [N] or [N, 1] from 0, or
    [N, L] of 0 and 1 where an image may have several of L labels. What was
    saved uncompressed (``numpy.savez``) is memory-mapped and need not fit in memory; what was compressed is
    loaded.
    Layout: Yang et al. 2023, "MedMNIST v2", Scientific Data 10:41.

    Args:
        path: The file.
        val: What becomes of the validation images: ``"train"`` adds them to the training images, ``"test"``
            to the test images, ``"drop"`` leaves them out, ``"auto"`` makes them the test set where there is
            none and else leaves them out.
        validation: Share of the training images, stratified by class, that becomes the test set, in the
            place of one that there is; images are then held in memory.
        classes: Class names in the order of their labels, else the numbers. A client's file may lack some of
            the federation's classes; then they must be named.
        channels: Channels of the images; required where there are more than four, as volumes look alike.

    Raises:
        ValueError: ``val``, ``validation``, ``classes`` or ``channels`` is out of range.
        DataError: The file or an array is missing, or images or labels are not as above.
    """
    check_range(at_least=0, channels=channels)
    check_range(at_least=0, below=1, validation=validation)
    archive = Archive(expand(path))
    found = {
        part: read_part(archive, part, channels) for part in ("train", "val", "test") if _has(archive, part)
    }
    fate = resolve_val(val, has_test="test" in found)
    notices = (left_out(len(found["val"])),) if fate == "drop" and "val" in found else ()
    train = _joined(archive, found, "train", fate)
    test = _joined(archive, found, "test", fate)
    if not train or not len(train):
        raise DataError(f"{archive.path}: train_images is empty; there must be training images")
    names = _class_names(archive.path, list(found.values()), classes)
    dark = dark_images(train.images, "multiply them to 0..255 before they are saved")
    whole = Dataset(train=train, test=test, classes=names, notices=(*notices, *dark))
    return with_validation(whole, validation)


def _has(archive: Archive, part: str) -> bool:
    # Half of a part is an error that names the missing half; training images are needed in any case.
    return part == "train" or f"{part}_images" in archive or f"{part}_labels" in archive


def read_part(archive: Archive, part: str, channels: int = 0) -> ImageSet:
    """Return one part of an archive: ``"train"``, ``"val"`` or ``"test"``.

    Args:
        archive: The file.
        part: Which part.
        channels: As for ``npz``.

    Raises:
        DataError: An array of it is missing, or images or labels are not as ``npz`` says.
    """
    where = f"{archive.path}: {part}"
    images, labels = archive.read(f"{part}_images"), archive.read(f"{part}_labels")
    _check_images(images, where, channels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    many = labels.ndim == 2 and labels.shape[1] > 1
    if (labels.ndim != 1 and not many) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where}_labels must be whole numbers [N] or [N, 1], one class an image, or [N, L], 0 or 1 for "
            f"each of L labels, not {labels.dtype} {list(labels.shape)}"
        )
    if len(labels) != len(images):
        raise DataError(
            f"{where}_images has {len(images):,} images, but {where}_labels {len(labels):,} labels"
        )
    if len(labels) and labels.min() < 0:
        raise DataError(f"{where}_labels holds {labels.min()}; labels count from 0")
    if many and len(labels) and labels.max() > 1:
        raise DataError(f"{where}_labels is {list(labels.shape)} and holds {labels.max()}, not 0 and 1 alone")
    kind = np.uint8 if many else np.int64
    return ImageSet(images=images if images.ndim == 4 else images[..., None], labels=labels.astype(kind))


def _check_images(images: NDArray[Any], where: str, channels: int) -> None:
    shape = list(images.shape)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        volumes = "; of volumes, save slices as images" if images.ndim == 5 else ""
        raise DataError(
            f"{where}_images must be uint8 [N, H, W] or [N, H, W, channels] with pixels 0..255, not "
            f"{images.dtype} {shape}{volumes}"
        )
    if images.ndim == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise DataError(f"{where}_images is {shape}, channels first; store it as [N, H, W, channels]")
    found = shape[3] if images.ndim == 4 else 1
    if channels and found != channels:
        raise DataError(f"{where}_images is {shape}: {found} channels, but data.channels = {channels}")
    if not channels and found > _CHANNELS:
        raise DataError(
            f"{where}_images is {shape}: volumes, or images of {found} channels; save volumes (3-D MedMNIST) "
            f"as slices; for channels say data.channels = {found}"
        )


def _joined(archive: Archive, found: dict[str, ImageSet], part: str, fate: str) -> ImageSet | None:
    """Return a part with the validation images where they belong to it."""
    parts = [found[name] for name in (part, "val") if name in found and (name == part or fate == part)]
    if len(parts) < 2:
        return parts[0] if parts else None
    if parts[0].images.shape[1:] != parts[1].images.shape[1:]:
        raise DataError(f'{archive.path}: val_images differ in size from {part}_images; data.val = "drop"')
    return ImageSet(
        images=np.concatenate([one.images for one in parts]),
        labels=np.concatenate([one.labels for one in parts]),
    )


def _class_names(path: Path, parts: Sequence[ImageSet], given: Sequence[str] | None) -> tuple[str, ...]:
    forms = {part.labels.shape[1:] for part in parts}
    if len(forms) > 1:
        raise DataError(f"{path}: its parts have labels of {len(forms)} forms; store all [N], or all [N, L]")
    if several(parts[0].labels):
        labels = parts[0].labels.shape[1]
        names = tuple(map(str, range(labels))) if given is None else resolve_classes(given, given, str(path))
        if len(names) != labels:
            raise DataError(f"{path}: there are {labels} labels; data.classes names {len(names)}")
        return names
    present = np.unique(np.concatenate([part.labels for part in parts]))
    top = int(present[-1])
    if given is not None:
        names = resolve_classes(given, given, str(path))
        if top >= len(names):
            raise DataError(
                f"{path}: label {top} has no name; data.classes names {len(names)} classes, from 0"
            )
        return names
    if len(present) <= top:
        gaps = np.setdiff1d(np.arange(top), present)[:5].tolist()
        raise DataError(
            f"{path}: labels go up to {top}, but no image has {', '.join(map(str, gaps))}; count classes "
            "from 0 without gaps, or name all of them in data.classes"
        )
    return tuple(map(str, range(top + 1)))
