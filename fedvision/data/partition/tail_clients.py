"""Where the tail lives: the images of the rare classes brought together at few clients.

A partition decides how many images each client has and how unlike clients are; which of them ever sees a rare
class is left to chance. Here it is a choice: of hospitals, say, two treat the rare diseases. Images of rare
classes at other clients are exchanged for images of other classes at those, one for one, so that the class
counts of the federation and the number of images of each client stay as they were. The rare classes are the
tail that reports have (``data.class_frequency_groups``), by the images that clients have, before any holdout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvision.data.class_frequency_groups import tail_groups
from fedvision.data.dataset import ImageSet
from fedvision.data.partition.partition_validation import is_lazy
from fedvision.data.partition.partitioners import ByColumn, Merged
from fedvision.data.targets import one_class
from fedvision.errors import DataError
from fedvision.formatting import plural

if TYPE_CHECKING:
    from fedvision.types import Partitioner

Indices = NDArray[np.int64]


def check(holders: int, use: str, partition: Partitioner, parts: object, images: ImageSet) -> None:
    """Refuse to exchange images where a client is more than its number of images.

    Args:
        holders: ``partition.tail_clients``.
        use: The partition's name.
        partition: The partitioner.
        parts: What it made.
        images: All training images.

    Raises:
        DataError: Clients are natural, made on access or of whole groups, or have a promised number of
            classes; or images have several labels.
    """
    obstacles = {
        "clients of a column are as they are": isinstance(partition, ByColumn | Merged),
        "clients that are made on access share images": is_lazy(parts),
        f"data.group = {images.group!r} keeps images together": bool(images.group),
        "shards promise a number of classes for each client": use == "shards",
        "it needs one class an image": not one_class(images.labels),
    }
    for why, found in obstacles.items():
        if found:
            raise DataError(
                f"partition.tail_clients = {holders} moves images between clients, and {why}; leave it out"
            )


def concentrate(
    parts: Sequence[Indices], labels: Indices, holders: int, rng: np.random.Generator
) -> tuple[list[Indices], tuple[int, ...]]:
    """Bring all images of the rare classes to some clients, drawn at random.

    Where the clients drawn have too few images, larger ones take the place of the smallest of them.

    Args:
        parts: Image numbers of each of K clients, disjoint.
        labels: int64 [N]: the class of each image.
        holders: How many clients get them, 1 to K; K changes nothing.
        rng: Draws clients and images.

    Returns:
        The sorted image numbers of each client, and the rare classes.

    Raises:
        DataError: There are fewer clients, no class is rare, or the largest clients are too small together.
    """
    key = f"partition.tail_clients = {holders}"
    if holders > len(parts):
        raise DataError(f"{key} is more than the {len(parts)} clients; lower it")
    owner = np.full(len(labels), -1, np.int64)
    for client, part in enumerate(parts):
        owner[part] = client
    classes, counts = np.unique(labels[owner >= 0], return_counts=True)
    rarest = tail_groups(counts).get("tail") if len(counts) else None
    if not rarest:
        raise DataError(f"{key}, but no class is rarer than others; set partition.imbalance, or leave it out")
    tail = classes[list(rarest)]
    rare = np.isin(labels, tail) & (owner >= 0)
    sizes = np.array([len(part) for part in parts])
    chosen = _drawn(sizes, holders, int(rare.sum()), rng, key)
    inside = np.isin(owner, chosen)
    moved, room = np.flatnonzero(rare & ~inside), np.flatnonzero(~rare & inside)
    exchanged = rng.choice(room, len(moved), replace=False)
    owner[moved], owner[exchanged] = owner[exchanged], owner[moved]
    order = np.argsort(owner, kind="stable").astype(np.int64, copy=False)
    edges = np.cumsum(np.bincount(owner + 1, minlength=len(parts) + 1))[:-1]
    return np.split(order, edges)[1:], tuple(tail.tolist())


def _drawn(sizes: Indices, holders: int, images: int, rng: np.random.Generator, key: str) -> Indices:
    """Return clients that have room for so many images together, at random where there is a choice."""
    order = rng.permutation(len(sizes))
    chosen, others = order[:holders], order[holders:]
    while (room := int(sizes[chosen].sum())) < images:
        smallest, largest = sizes[chosen].argmin(), sizes[others].argmax() if len(others) else -1
        if largest < 0 or sizes[others[largest]] <= sizes[chosen[smallest]]:
            raise DataError(
                f"{key}: the rare classes have {plural(images, 'image')}, and the {holders} largest of the "
                f"clients have room for {room:,}; raise it, or use fewer clients"
            )
        chosen[smallest], others[largest] = others[largest], chosen[smallest]
    return chosen
