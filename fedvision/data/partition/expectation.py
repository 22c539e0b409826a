"""Class counts of clients that are made on access: stated by their source, or scaled up from some."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision import seeding
from fedvision.data import targets
from fedvision.data.partition.holdout import Indices
from fedvision.data.partition.partition_validation import Checked
from fedvision.data.targets import ClassCounter, Targets
from fedvision.errors import DataError

ESTIMATED_FROM = 1000
"""Clients from which the class counts of a lazy sequence are estimated that does not state them."""


def expected(
    clients: Checked,
    labels: Targets,
    num_classes: int,
    seed: int,
    counter: ClassCounter = targets.count,
) -> tuple[Indices, Indices]:
    """Return the training images of each class that are expected over all clients of a lazy sequence.

    A class that has images for training has one at least: it is rare, not absent. Classes with equal
    expectations have equal numbers.

    Args:
        clients: The sequence.
        labels: The images' targets [N, ...].
        num_classes: C.
        seed: The experiment's root seed; chooses the clients from which is estimated what is not stated.
        counter: Returns the class counts of targets.

    Returns:
        int64 [C] with an image counted once for each client that trains on it, and int64 [C] with every
        image counted once; of a source that does not state the latter, the smaller one of the former and all
        there are.

    Raises:
        DataError: What the source states is unusable.
    """
    source, share = clients.source, 1.0
    if clients.divided is not None:
        source = clients.divided  # type: ignore[assignment]
    elif clients.held is not None:
        share = 1 - float(clients.held.mean())
    trained = clients.retained if clients.held is None else clients.retained[~clients.held]
    there = counter(labels[trained], num_classes)
    # A source states strata, which are classes only where an image has one.
    countable = targets.one_class(labels)
    stated = getattr(source, "expected_counts", None) if countable else None
    if stated is None:
        some = min(len(clients), ESTIMATED_FROM)
        sampled = seeding.numpy_stream(seed, "estimate").choice(len(clients), some, replace=False)
        counts = targets.count_each(
            [clients[int(client)] for client in sampled], labels, num_classes, counter
        )
        total = counts.sum(axis=0) * (len(clients) / some)
    else:
        total = _usable(stated, num_classes, f"{clients.where}: expected_counts") * share
    different = getattr(source, "expected_distinct", None) if countable else None
    if different is None:
        distinct = np.minimum(total, there)
    else:
        distinct = _usable(different, num_classes, f"{clients.where}: expected_distinct") * share
    return _whole(total, there), _whole(distinct, there)


def _usable(stated: Any, num_classes: int, what: str) -> NDArray[np.float64]:
    """Return stated numbers as float64 [C]; raise DataError where they are unusable."""
    numbers = np.asarray(stated)
    usable = numbers.ndim == 1 and len(numbers) <= num_classes and np.issubdtype(numbers.dtype, np.number)
    if not usable or not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise DataError(
            f"{what} must be at most {num_classes} finite numbers >= 0, one for each class, not "
            f"{numbers.dtype} {list(numbers.shape)}"
        )
    return np.pad(numbers.astype(np.float64), (0, num_classes - len(numbers)))


def _whole(numbers: NDArray[np.float64], there: Indices) -> Indices:
    # Each is rounded alone: rounding their running sum would make one of two equal classes the rarer one.
    return np.maximum(np.rint(numbers).astype(np.int64), there > 0)
