"""The MNIST family straight from its files: images mapped into memory, nothing decoded and nothing copied.

torchvision would be imported for it (a second and 85 MB in every process that loads data) and would read all
images into memory, from where they go to other processes as copies. A mapped file goes there by name.

The format, from yann.lecun.com/exdb/mnist: two zero bytes, the type (8 for uint8), the number of dimensions,
each dimension as a big-endian int32, then the values row by row.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.errors import DataError

_DIGITS = "zero one two three four five six seven eight nine".split()
CLASSES = {
    "MNIST": tuple(f"{digit} - {word}" for digit, word in enumerate(_DIGITS)),
    "FashionMNIST": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "KMNIST": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
"""Class names by torchvision's name of the set."""
_HALVES = ("train", "t10k")


def idx_dataset(name: str, root: Path) -> Dataset | None:
    """Return a set of the MNIST family as torchvision lays it out, or None where it is not there.

    Args:
        name: torchvision's name of the set.
        root: The folder of data sets: files are ``root/name/raw/train-images-idx3-ubyte`` and so on.

    Raises:
        DataError: A file is damaged.
    """
    raw = root / name / "raw"
    files = [[raw / f"{half}-{part}-ubyte" for part in ("images-idx3", "labels-idx1")] for half in _HALVES]
    if name not in CLASSES or not all(file.is_file() for pair in files for file in pair):
        return None
    train, test = (
        ImageSet(images=idx_array(images)[..., None], labels=idx_array(labels).astype(np.int64))
        for images, labels in files
    )
    return Dataset(train=train, test=test, classes=CLASSES[name])


def idx_array(file: Path) -> NDArray[np.uint8]:
    """Map the uint8 array of an IDX file, read-only.

    Raises:
        DataError: It is no such file, or it is cut short.
    """
    try:
        with open(file, "rb") as opened:
            head = opened.read(4)
            if head[:3] != b"\0\0\x08" or len(head) < 4:
                raise DataError(f"{file}: it is no IDX file of bytes; fetch it again")
            shape = struct.unpack(f">{head[3]}i", opened.read(4 * head[3]))
        return np.memmap(file, np.uint8, "r", 4 + 4 * head[3], shape)
    except (OSError, ValueError, struct.error) as error:
        raise DataError(f"{file}: it cannot be read ({error}); fetch it again") from error
