"""One split of the training images: the long tail first, then the partition, then every check.

A split depends on labels, columns, the partition's table and the root seed alone; ``digest`` proves that two
machines made the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision import registry, seeding
from fedvision.config import PartitionConfig
from fedvision.data import longtail
from fedvision.data.images import ImageSet
from fedvision.errors import ConfigError, DataError, PluginError

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Which client has which training images."""

    clients: tuple[Indices, ...]
    """One sorted int64 array [n] of image numbers for each client, none empty."""
    left_out: Indices
    """Sorted int64 image numbers that no client has: dropped by the long tail or by the partition."""
    counts: Indices
    """int64 [K, C]: images of each class on each client."""
    digest: str
    """SHA-256 over the clients' image numbers, hexadecimal."""


def elsewhere(num_classes: int) -> Split:
    """Return the split of images that are on other machines: nothing is known of it."""
    none = np.zeros(0, np.int64)
    return Split(clients=(), left_out=none, counts=np.zeros((0, num_classes), np.int64), digest="")


def make(train: ImageSet, config: PartitionConfig, *, num_classes: int, seed: int) -> Split:
    """Spread training images over clients.

    Args:
        train: The images; only labels and columns are read.
        config: The experiment's ``[partition]``.
        num_classes: C.
        seed: The experiment's root seed.

    Raises:
        ConfigError: ``partition.clients`` is missing where nothing settles it.
        PluginError: The partition is unknown, its arguments do not fit, or it failed.
        DataError: There are too few images, a label is out of range, or the partition's result is unusable.
    """
    labels = train.labels
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        found = f"{labels.min()} to {labels.max()}" if len(labels) else "none at all"
        raise DataError(f"training labels must be 0 to {num_classes - 1}, but there are {found}")
    kept = longtail.subsample(labels, config.imbalance, seeding.numpy_stream(seed, "longtail"), num_classes)
    columns = {name: values[kept] for name, values in train.columns.items()}
    partition = registry.build("partition", config, columns=columns)
    clients = _clients(partition, config)
    try:
        parts = partition(labels[kept], clients, seeding.numpy_stream(seed, "partition"))
    except (TypeError, ValueError, IndexError) as error:
        raise PluginError(f"[partition] use = {config.use!r} failed: {error}") from error
    lists = tuple(np.sort(kept[part]) for part in _checked(parts, len(kept), clients, config.use))
    return Split(
        clients=lists,
        left_out=np.setdiff1d(np.arange(len(labels)), np.concatenate(lists), assume_unique=True),
        counts=_counts(lists, labels, num_classes),
        digest=_digest(lists),
    )


def _clients(partition: Any, config: PartitionConfig) -> int:
    """Return the number of clients: as written, or as the partitioner's attribute ``clients`` says."""
    settled = config.clients if config.clients is not None else getattr(partition, "clients", None)
    if settled is None:
        raise ConfigError(
            f"partition.clients is missing; use = {config.use!r} does not settle it, so add clients = ..."
        )
    return int(settled)


def _checked(parts: Any, images: int, clients: int, use: str) -> list[Indices]:
    """Return a partitioner's result as int64 arrays, or say what is wrong with it."""
    where = f"[partition] use = {use!r}"
    if not isinstance(parts, Sequence) or len(parts) != clients:
        found = len(parts) if isinstance(parts, Sequence) else type(parts).__name__
        raise DataError(f"{where} must return a list of {clients} index arrays, one per client, not {found}")
    arrays = [np.asarray(part) for part in parts]
    if empty := [client for client, part in enumerate(arrays) if part.size == 0]:
        names = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"{where} left {len(empty)} of {clients} clients without images ({names}); "
            "lower partition.clients or change the partition"
        )
    for client, part in enumerate(arrays):
        if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer):
            shape = list(part.shape)
            raise DataError(
                f"{where} gave client {client} {part.dtype} {shape}; it must be whole numbers [n]"
            )
        if part.min() < 0 or part.max() >= images:
            raise DataError(
                f"{where} gave client {client} images {part.min()} to {part.max()}, not 0 to {images - 1}"
            )
    _check_disjoint(arrays, images, where)
    return [part.astype(np.int64) for part in arrays]


def _check_disjoint(arrays: Sequence[NDArray[Any]], images: int, where: str) -> None:
    times = np.bincount(np.concatenate(arrays), minlength=images)
    if times.max() > 1:
        image = int(times.argmax())
        owners = [client for client, part in enumerate(arrays) if image in part]
        raise DataError(
            f"{where} gave image {image} {times[image]} times, to clients {owners[:5]}; "
            "an image belongs to one client"
        )


def _counts(lists: Sequence[Indices], labels: Indices, num_classes: int) -> Indices:
    owner = np.repeat(np.arange(len(lists)), [len(part) for part in lists])
    cell = owner * num_classes + labels[np.concatenate(lists)]
    return np.bincount(cell, minlength=len(lists) * num_classes).reshape(len(lists), num_classes)


def _digest(lists: Sequence[Indices]) -> str:
    """Hash sizes and image numbers as little-endian int64, the same bytes on every machine."""
    sizes = np.array([len(part) for part in lists])
    return hashlib.sha256(np.concatenate([sizes, *lists]).astype("<i8").tobytes()).hexdigest()
