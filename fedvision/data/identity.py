"""What a data set is, as digests: a run that goes on must find the images, labels and names it began with.

Pixels that lie in the cache of decoded images have a key already, which was made from the contents of their
files: nothing is read for it. All others are hashed once at the start, at the speed of SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.memmap import reference
from fedvision.data.targets import Targets, one_class

_CACHED = re.compile(r".*/(?P<key>[0-9a-f]{40})/images\.npy")
"""Where ``data.cache`` keeps decoded images: the folder's name is a digest of files and recipe."""
_BYTES = 1 << 24
"""Hashed at a time: a mapped array larger than memory passes through in pieces."""


def identity(dataset: Dataset, *, train: bool = True) -> dict[str, str]:
    """Return hexadecimal SHA-256 digests of all parts of a data set.

    Args:
        dataset: The data set.
        train: Whether its training images are used here; a server across machines has none.

    Returns:
        Digests by a name for messages: ``class names``, and for each part that is there ``training images``,
        ``training labels``, ``training columns``, where a network reads such ``training further inputs``, and
        the same of ``test``.
    """
    found = {"class names": _digest([json.dumps(list(dataset.classes)).encode()])}
    parts = {"training": dataset.train} if train else {}
    if dataset.test is not None:
        parts["test"] = dataset.test
    for part, images in parts.items():
        found |= {f"{part} {name}": digest for name, digest in _parts(images).items()}
    return found


def _parts(images: ImageSet) -> dict[str, str]:
    columns = [
        piece
        for name, values in sorted(images.columns.items())
        for piece in (name.encode(), *_column(values))
    ]
    found = {
        "images": pixels(images.images),
        "labels": _digest(_labels(images.labels)),
        "columns": _digest(columns),
    }
    if images.further is not None:
        found["further inputs"] = rows_of(images)
    return found


def rows_of(images: ImageSet) -> str:
    """Return the hexadecimal SHA-256 digest of what a network reads beside the pixels of images."""
    return _digest([] if images.further is None else _column(images.further))


def _labels(labels: Targets) -> list[bytes]:
    if one_class(labels):
        return [labels.astype("<i8").tobytes()]
    return [json.dumps(list(labels.shape)).encode(), labels.tobytes()]


def pixels(images: NDArray[np.uint8]) -> str:
    """Return the hexadecimal SHA-256 digest of images uint8 [N, H, W, channels]."""
    shape = json.dumps(list(images.shape)).encode()
    where = reference(images)
    if where is not None and (cached := _CACHED.fullmatch(where.path)):
        return _digest([cached["key"].encode(), str(where.offset).encode(), shape])
    rows = max(1, _BYTES // max(1, int(np.prod(images.shape[1:]))))
    digest = hashlib.sha256(shape)
    for start in range(0, len(images), rows):
        digest.update(np.ascontiguousarray(images[start : start + rows]).reshape(-1).data)
    return digest.hexdigest()


def _column(values: NDArray[Any]) -> list[bytes]:
    """Return a column's bytes, numbers as they are and all else as text."""
    if values.dtype.kind in "biuf":
        return [values.dtype.str.encode(), np.ascontiguousarray(values).tobytes()]
    return [json.dumps([str(value) for value in values.tolist()]).encode()]


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()
