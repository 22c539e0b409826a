"""Images that belong together, as those of one patient: no split may part them.

An image of a patient in the training set tells what another image of the same patient shows; measured on that
one, a model seems better than it is. ``data.group`` names the column that says which images belong together;
the validation share, the partition and the holdout then take or leave whole groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import ImageSet
from fedvision.data.partition.partition_validation import check_list, check_number, is_lazy
from fedvision.data.partition.partitioners import ByColumn, Merged, values_of
from fedvision.errors import DataError

if TYPE_CHECKING:
    from fedvision.types import Partitioner

Indices = NDArray[np.int64]


def groups_of(images: ImageSet) -> Indices | None:
    """Return the group of each image, int64 [N] from 0, or None where ``images.group`` names no column.

    Raises:
        DataError: Some images have no value in the column.
    """
    return values_of(images.columns[images.group], f"column {images.group!r}")[1] if images.group else None


def majority(labels: Indices, groups: Indices) -> tuple[Indices, Indices]:
    """Return the most frequent label of each group, the lowest of equals, and each image's place among them.

    Args:
        labels: int64 [N], from 0.
        groups: int64 [N], any numbers.

    Returns:
        int64 [G], for the groups that occur, and int64 [N], from 0 to G - 1.
    """
    found, place = np.unique(groups, return_inverse=True)
    classes = int(labels.max()) + 1
    counts = np.bincount(place * classes + labels, minlength=len(found) * classes)
    return counts.reshape(len(found), classes).argmax(axis=1).astype(np.int64), place.astype(np.int64)


def partition_groups(
    partition: Partitioner,
    labels: Indices,
    groups: Indices,
    clients: int,
    rng: np.random.Generator,
    *,
    column: str,
    where: str,
) -> list[Indices]:
    """Spread whole groups over clients: the partitioner sees each as one item with its most frequent label.

    Natural clients (``ByColumn``) stay as they are, and must not share a group.

    Args:
        partition: As the experiment says.
        labels: int64 [N].
        groups: int64 [N].
        clients: K.
        rng: The partition's stream.
        column: The groups' column, for messages.
        where: Which table named the partitioner.

    Raises:
        DataError: There are fewer groups than clients, natural clients share one, or clients are lazy.
    """
    if isinstance(partition, ByColumn | Merged):
        parts = partition(labels, clients, rng)
        name = partition.name if isinstance(partition, ByColumn) else partition.column.name
        _check_apart(parts, groups, column, name)
        return parts
    items, place = majority(labels, groups)
    if clients > len(items):
        raise DataError(
            f"partition.clients = {clients} is more than the {len(items)} groups of column {column!r} "
            "(data.group); lower it"
        )
    found: Any = partition(items, clients, rng)
    check_number(found, clients, where)
    if is_lazy(found):
        raise DataError(f"{where} lets clients share images, which data.group = {column!r} forbids")
    owner = np.full(len(items), -1, np.int64)
    for client, part in enumerate(check_list(found, len(items), where)):
        owner[part] = client
    return [np.flatnonzero(owner[place] == client) for client in range(clients)]


def _check_apart(parts: Sequence[Indices], groups: Indices, column: str, clients: str) -> None:
    owner = np.full(int(groups.max()) + 1, -1, np.int64)
    for client, part in enumerate(parts):
        mine = np.unique(groups[part])
        if (taken := mine[owner[mine] >= 0]).size:
            image = int(part[np.flatnonzero(groups[part] == taken[0])[0]])
            raise DataError(
                f"{len(taken):,} groups of column {column!r} (data.group) are at two clients of column "
                f"{clients!r}, the first with image number {image}; give each group one client"
            )
        owner[mine] = client


def shared_groups(train: ImageSet, test: ImageSet) -> tuple[str, ...]:
    """Return a sentence on groups that are in the training and in the test images, if there are any."""
    if not train.group:
        return ()
    both = set(train.columns[train.group].tolist()) & set(test.columns[train.group].tolist())
    if not both:
        return ()
    shown = ", ".join(map(str, sorted(both, key=str)[:3]))
    return (
        f"{len(both):,} groups of column {train.group!r} have training and test images ({shown}): what is "
        "measured on them is too good",
    )
