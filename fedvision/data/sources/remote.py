"""Images that only the clients have: the server knows their classes and size, and perhaps a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.decoding.file_list import resolve_classes
from fedvision.data.paths import expand
from fedvision.data.sources.arrays import read_part
from fedvision.data.sources.npz_archive import Archive
from fedvision.data.targets import several
from fedvision.errors import DataError
from fedvision.ranges import check_range


def elsewhere(
    *, classes: Sequence[str], height: int, width: int, channels: int = 3, test: str = ""
) -> Dataset:
    """Describe images that are on the clients' machines.

    Args:
        classes: Class names in the order of their labels; clients map their own names to these.
        height: H of every image.
        width: W of every image.
        channels: 1 or 3.
        test: An .npz file with ``test_images`` and ``test_labels`` on the server, for its own measurement.

    Returns:
        No training images, uint8 [0, H, W, channels]; their labels have the form of the test images', or of
        one class an image where there is no test set to tell.

    Raises:
        ValueError: A size is below 1.
        DataError: The test images have another size, or other labels.
    """
    check_range(at_least=1, height=height, width=width, channels=channels)
    names = resolve_classes(classes, classes, "data.classes")
    empty = ImageSet(images=np.zeros((0, height, width, channels), np.uint8), labels=np.zeros(0, np.int64))
    if not test:
        return Dataset(train=empty, classes=names)
    tested = _test(test, names, empty)
    return Dataset(train=replace(empty, labels=tested.labels[:0]), test=tested, classes=names)


def _test(path: str, classes: tuple[str, ...], like: ImageSet) -> ImageSet:
    archive = Archive(expand(path))
    found = read_part(archive, "test", like.images.shape[3])
    size, declared = list(found.images.shape[1:]), list(like.images.shape[1:])
    if size != declared:
        raise DataError(
            f"{archive.path}: the test images are {size} and the clients' are said to be {declared}"
        )
    if several(found.labels):
        if found.labels.shape[1] != len(classes):
            labels = found.labels.shape[1]
            raise DataError(f"{archive.path}: there are {labels} labels; data.classes names {len(classes)}")
    elif len(found) and found.labels.max() >= len(classes):
        raise DataError(f"{archive.path}: label {found.labels.max()} has no name in data.classes")
    return found
