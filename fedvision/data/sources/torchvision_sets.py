"""torchvision's classification sets by name.

Sets that torchvision holds in memory (EMNIST, QMNIST, USPS, CIFAR, SVHN, STL-10) are taken as arrays, without
a loop over pictures; MNIST and its kin that are there already are mapped from their files; sets of image
files go through the decode-once cache and need a ``size``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.decoding.decode import Decoding
from fedvision.data.decoding.file_list import Listing, Reading, to_dataset
from fedvision.data.paths import data_root
from fedvision.data.sources.idx import idx_dataset
from fedvision.data.sources.pcam import pcam_arrays
from fedvision.data.sources.validation_share import with_validation
from fedvision.errors import DataError, first_line, nearest
from fedvision.ranges import check_range
from fedvision.shared_keys import takes_fields_of


@dataclass(frozen=True, kw_only=True)
class SetDecoding(Decoding):
    """How sets of image files are decoded; others are as they are."""

    size: int = 0
    """Side of the square images in pixels, for sets of image files."""

    def __post_init__(self) -> None:
        Decoding(**{**vars(self), "size": self.size or 1})  # the others are in range without it as well


@takes_fields_of(SetDecoding)
def torchvision_dataset(
    *,
    dataset: str,
    root: str = "",
    download: bool = False,
    split: str = "balanced",
    validation: float = 0.0,
    files: SetDecoding,
) -> Dataset:
    """Load one of torchvision's sets.

    Training images are those of torchvision's ``train`` (or ``trainval``), test images those of ``test``;
    where a set has a validation part of its own, it is not used. EuroSAT has one part only, of which
    ``validation`` makes a test set. EMNIST's images, which lie on their side in its files, are set upright.

    Args:
        dataset: Class of ``torchvision.datasets``, such as ``"FashionMNIST"``.
        root: Folder of data sets; empty is $FEDVISION_DATA, else ~/.cache/fedvision.
        download: Fetch the set where it is not there.
        split: Which of EMNIST's six sets.
        validation: Share of the training images, stratified by class, that becomes the test set, in the
            place of one that there is.
        files: How sets of image files are decoded.

    Returns:
        Images uint8 [N, H, W, 1 or 3].

    Raises:
        ValueError: A value is out of range or does not suit the set.
        DataError: The set is not there, cannot be fetched or cannot be read.
    """
    check_range(at_least=0, below=1, validation=validation)
    folder = data_root(root)
    if split != "balanced" and dataset != "EMNIST":
        raise ValueError(f"split = {split!r} is for emnist alone; {dataset} is not made of several sets")
    if found := idx_dataset(dataset, folder):
        return with_validation(_as_they_are(dataset, files, found), validation)
    maker = _maker(dataset)
    train, test = (_open(maker, folder, download, half, split) for half in (True, False))
    arrays = _arrays(train)
    if arrays is not None and test is not None:
        whole = _from_arrays(dataset, arrays, _arrays(test), _names(train), split)
        return with_validation(_as_they_are(dataset, files, whole), validation)
    if files.size < 1:
        raise ValueError(f"size is missing: the images of {dataset} differ in size; add size = 64, say")
    reading = Reading(**vars(files), validation=validation)
    return to_dataset(_listing(folder, train, test), reading)


def _as_they_are(dataset: str, files: SetDecoding, found: Dataset) -> Dataset:
    """Return a set of arrays; keys that would have no effect on it are refused."""
    for key in ("size", "fit", "range"):
        if getattr(files, key) != getattr(SetDecoding(), key):
            raise ValueError(f"{key} is for other sets; the images of {dataset} are of one size")
    channels = found.train.images.shape[3]
    if files.channels not in (channels, SetDecoding().channels):
        raise ValueError(f"channels = {files.channels}: the images of {dataset} have {channels}; remove it")
    return found


def _maker(dataset: str) -> Any:
    from torchvision import datasets

    found: Any = getattr(datasets, dataset, None)
    if not inspect.isclass(found) or dataset not in datasets.__all__:
        raise ValueError(
            f"dataset = {dataset!r}: torchvision has no such set{nearest(dataset, datasets.__all__)}"
        )
    return found


def _open(maker: Any, folder: Path, download: bool, train: bool, split: str) -> Any:
    """Open one half of a set as torchvision's object; None where the set has no such half."""
    known = inspect.signature(maker).parameters
    arguments: dict[str, Any] = {"download": download}
    if maker.__name__ == "EMNIST":
        arguments |= {"split": split, "train": train}
    elif "train" in known:
        arguments |= {"train": train}
    elif "split" in known:
        arguments |= {"split": known["split"].default if train else "test"}
    elif not train:
        return None
    # Called by the set for each picture: a path is all that is wanted here.
    if "loader" in known:
        arguments |= {"loader": os.fspath}
    try:
        if download:
            folder.mkdir(parents=True, exist_ok=True)
        return maker(str(folder), **arguments)
    except (RuntimeError, OSError, ValueError) as error:
        failed = "could not be fetched to" if download else "is not in"
        raise DataError(
            f"{maker.__name__} {failed} {folder} ({first_line(error).rstrip('.')}); set data.download = true "
            "to fetch it, or data.root to the folder that holds it"
        ) from error


def _arrays(made: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
    """Return images uint8 [N, H, W, channels] and labels int64 [N] that lie in memory, or None."""
    if type(made).__name__ == "PCAM":
        return pcam_arrays(made)
    data = getattr(made, "data", None)
    if data is None:
        return None
    images = np.asarray(data)
    if images.ndim == 3:
        images = images[..., None]
    elif images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    labels = np.asarray(made.targets if hasattr(made, "targets") else made.labels)
    # QMNIST has a row of facts for each image; the first is the digit.
    digits = labels if labels.ndim == 1 else labels[:, 0]
    return np.ascontiguousarray(images), digits.astype(np.int64)


def _from_arrays(dataset: str, train: Any, test: Any, names: tuple[str, ...] | None, split: str) -> Dataset:
    sets = [ImageSet(images=images, labels=labels) for images, labels in (train, test)]
    if dataset == "EMNIST":
        # Its letters count from 1; the first name says that there is no class 0.
        shift = int(split == "letters")
        names = names and names[shift:]
        sets = [
            ImageSet(images=np.ascontiguousarray(part.images.swapaxes(1, 2)), labels=part.labels - shift)
            for part in sets
        ]
    return Dataset(train=sets[0], test=sets[1], classes=names or _numbers(*(part.labels for part in sets)))


def _names(made: Any) -> tuple[str, ...] | None:
    names = getattr(made, "classes", None)
    return tuple(map(str, names)) if names else None


def _numbers(*labels: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(map(str, range(1 + max(int(part.max()) for part in labels))))


def _listing(folder: Path, train: Any, test: Any) -> Listing:
    rows = [(row, "train") for row in _files(train)]
    if test is not None:
        rows += [(row, "test") for row in _files(test)]
    labels = np.array([label for (_, label), _ in rows], np.int64)
    return Listing(
        root=folder,
        names=[os.path.relpath(path, folder) for (path, _), _ in rows],
        labels=labels,
        classes=_names(train) or _numbers(labels),
        parts=np.array([part for _, part in rows]),
    )


def _files(made: Any) -> Sequence[tuple[str, int]]:
    """Return (path, label) of each picture of a set of files.

    GTSRB and the pets take no loader of ours; their lists have no public name.
    """
    if "loader" in inspect.signature(type(made)).parameters:
        return [made[i] for i in range(len(made))]
    if hasattr(made, "_samples"):
        return list(made._samples)
    if hasattr(made, "_images"):
        return list(zip(made._images, made._labels, strict=True))
    raise DataError(
        f"{type(made).__name__}: how its files are listed is not known; use image-folder or manifest"
    )
