"""A partitioner's result, checked: a list whole and at once, a lazy sequence client by client on access.

A lazy sequence (``types.LazyClients``) is anything with ``len`` and ``[]`` that is neither list nor tuple.
Nobody promises that its clients are disjoint or complete; each client is checked alone.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fedvision.data.partition.holdout import Halves, Indices, Mask
from fedvision.errors import DataError, PluginError
from fedvision.types import LazyClients, LazyHalves

FAILURES = (TypeError, ValueError, IndexError)
"""What a partitioner raises that was given arguments it cannot use."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """A lazy sequence of clients that gives out checked, sorted numbers of the images that each trains on.

    Raises:
        DataError: The client's images are none, repeated, or not there; the sentence names the client.
        PluginError: The partitioner's sequence failed.
    """

    source: LazyClients
    """What the partitioner returned."""
    retained: Indices
    """int64 [M]: the images that were partitioned; the source counts them from 0."""
    where: str
    """Which table named the partitioner."""
    held: Mask | None = None
    """bool [M]: images on which no client trains; None where nothing is kept from training."""
    divided: LazyHalves | None = None
    """Gives the clients' halves where the source draws them itself."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, client: int) -> Indices:
        """Return the images that a client trains on, sorted."""
        return self.halves(client).train

    def halves(self, client: int) -> Halves:
        """Return the images that a client trains and measures on, both sorted."""
        number = range(len(self))[operator.index(client)]
        try:
            if self.divided is None:
                parts = [np.asarray(self.source[number])]
            else:
                parts = [np.asarray(part) for part in self.divided[number]]
        except FAILURES as error:
            raise PluginError(f"{self.where} failed for client {number}: {error}") from error
        if parts[0].size == 0:
            raise DataError(f"{self.where} left client {number} without images; each needs at least one")
        train, *rest = (self._checked(part, number) for part in parts)
        if self.held is None:
            return Halves(self.retained[train], np.zeros(0, np.int64))
        test = rest[0] if rest else train[self.held[train]]
        train = train if rest else train[~self.held[train]]
        self._check_halves(train, test, self.held, number)
        return Halves(self.retained[train], self.retained[test])

    def size(self, client: int) -> int:
        """Return how many images a client trains on, from the source's own ``size`` where it has one."""
        source = self.source if self.held is None else self.divided
        size_of = getattr(source, "size", None)
        return int(size_of(client)) if callable(size_of) else len(self[client])

    def __iter__(self) -> Iterator[Indices]:
        return map(self.__getitem__, range(len(self)))

    def _checked(self, part: NDArray[Any], number: int) -> Indices:
        """Return numbers of images, sorted; raise where they are wrong."""
        if part.size == 0:
            return np.zeros(0, np.int64)
        _check_numbers(part, number, len(self.retained), self.where)
        numbers = np.sort(part.astype(np.int64, copy=False))
        if (again := numbers[1:] == numbers[:-1]).any():
            image = numbers[1:][again][0]
            raise DataError(
                f"{self.where} gave client {number} image {image} twice; a client has an image at most once"
            )
        return numbers

    def _check_halves(self, train: Indices, test: Indices, held: Mask, number: int) -> None:
        if not len(train):
            raise DataError(
                f"{self.where} gave client {number} only images that all clients keep from training "
                "(evaluation.holdout); give it more images, or set evaluation.holdout = 0"
            )
        if held[train].any() or not held[test].all():
            raise DataError(
                f"{self.where} gave client {number} an image for training that is kept from it, or one to "
                "measure on that others train on; with_holdout must keep to the images that it was given"
            )


def is_lazy(parts: Any) -> TypeGuard[LazyClients]:
    """Return whether a partitioner's result is a lazy sequence."""
    if isinstance(parts, list | tuple | str | bytes | Mapping | np.ndarray):
        return False
    return hasattr(parts, "__len__") and hasattr(parts, "__getitem__")


def check_number(parts: Any, clients: int, where: str) -> None:
    """Refuse a partitioner's result that is no sequence, or not of this many clients.

    Raises:
        DataError: It is.
    """
    if not (isinstance(parts, Sequence) or is_lazy(parts)) or len(parts) != clients:
        found = len(parts) if isinstance(parts, Sequence) or is_lazy(parts) else type(parts).__name__
        raise DataError(
            f"{where} must return a list of {clients} index arrays, one per client, not {found}; a lazy "
            "sequence with len and [] serves too"
        )


def check_list(parts: Sequence[Any], images: int, where: str) -> list[Indices]:
    """Return a list of clients as int64 arrays.

    Args:
        parts: One index array for each client.
        images: Number of images that were partitioned.
        where: Which table named the partitioner.

    Raises:
        DataError: A client has no images, or images that are not there or another client's.
    """
    arrays = [np.asarray(part) for part in parts]
    if empty := [client for client, part in enumerate(arrays) if part.size == 0]:
        names = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"{where} left {len(empty)} of {len(arrays)} clients without images ({names}); "
            "lower partition.clients or change the partition"
        )
    for client, part in enumerate(arrays):
        _check_numbers(part, client, images, where)
    _check_disjoint(arrays, images, where)
    return [part.astype(np.int64) for part in arrays]


def _check_numbers(part: NDArray[Any], client: int, images: int, where: str) -> None:
    if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer):
        shape = list(part.shape)
        raise DataError(f"{where} gave client {client} {part.dtype} {shape}; it must be whole numbers [n]")
    if part.min() < 0 or part.max() >= images:
        raise DataError(
            f"{where} gave client {client} images {part.min()} to {part.max()}, not 0 to {images - 1}"
        )


def _check_disjoint(arrays: Sequence[NDArray[Any]], images: int, where: str) -> None:
    times = np.bincount(np.concatenate(arrays), minlength=images)
    if times.max() > 1:
        image = int(times.argmax())
        owners = [client for client, part in enumerate(arrays) if image in part]
        raise DataError(
            f"{where} gave image {image} {times[image]} times, to clients {owners[:5]}; "
            "an image belongs to one client"
        )
