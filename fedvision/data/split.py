"""One split of the training images: the long tail first, then the partition, then every check.

A split depends on labels, columns, the partition's table and the root seed alone; ``digest`` proves that two
machines made the same one. Of a list of clients everything is there and counted. Of a lazy sequence
(``types.LazyClients``) nothing is held for a client, and the federation's class counts are an expectation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedvision import registry, seeding
from fedvision.config import PartitionConfig
from fedvision.data import longtail
from fedvision.data.clients import FAILURES, Checked, check_list, check_number, is_lazy
from fedvision.data.groups import groups_of, partition_groups
from fedvision.data.images import ImageSet
from fedvision.errors import ConfigError, DataError, PluginError
from fedvision.types import Partitioner

Indices = NDArray[np.int64]
Clients: TypeAlias = "tuple[Indices, ...] | Checked"
LISTED, SAMPLE = 10_000, 100
"""Reports show all of a list of at most ``LISTED`` clients; of more, and of lazy ones, ``SAMPLE`` of them."""
ESTIMATED_FROM = 1000
"""Clients from which the class counts of a lazy sequence are estimated that does not tell them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Which client has which training images."""

    clients: Clients
    """A sorted int64 array [n] of image numbers for each client, none empty; in memory or made when asked."""
    left_out: Indices
    """Sorted int64 image numbers that no client has: dropped by the long tail or by a list's partition."""
    labels: Indices
    """int64 [N]: the images' labels."""
    totals: Indices
    """int64 [C]: images of each class over all clients, an image counted once for each client that has it."""
    exact: bool
    """Whether ``totals`` was counted; else it is an expectation, rounded."""
    shown: Indices
    """int64, rising: the clients that reports show, all or a sample that the root seed draws."""
    digest: str
    """SHA-256, hexadecimal: over the image numbers of a list's clients; else over labels, the partition's
    table, the seed and the image numbers of the clients shown."""

    @property
    def lazy(self) -> bool:
        """Whether clients are made when asked for, and may share images."""
        return not isinstance(self.clients, tuple)

    @property
    def sampled(self) -> bool:
        """Whether reports show a sample of the clients and not all."""
        return len(self.shown) < len(self.clients)

    def size(self, client: int) -> int:
        """Return a client's number of images; a lazy client is not made for it where its source knows."""
        return self.clients.size(client) if isinstance(self.clients, Checked) else len(self.clients[client])

    def counts(self, clients: Iterable[int] | None = None) -> Indices:
        """Count the images of each class on some clients, all by default.

        Returns:
            int64 [K, C], a row for each client in the order given.
        """
        chosen = self.clients if clients is None else [self.clients[int(client)] for client in clients]
        return _counts(list(chosen), self.labels, len(self.totals))

    def facts(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return what a run folder keeps of the split; its size does not grow with the number of clients.

        Args:
            classes: Names [C].
        """
        facts: dict[str, Any] = {"digest": self.digest, "classes": list(classes)}
        if self.sampled:
            facts |= {"clients": len(self.clients), "totals": self.totals, "exact": self.exact}
            facts |= {"shown": self.shown}
        return {**facts, "counts": self.counts(self.shown), "left_out": len(self.left_out)}


def elsewhere(num_classes: int) -> Split:
    """Return the split of images that are on other machines: nothing is known of it."""
    none = np.zeros(0, np.int64)
    return Split(
        clients=(),
        left_out=none,
        labels=none,
        totals=np.zeros(num_classes, np.int64),
        exact=False,
        shown=none,
        digest="",
    )


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
    number, where = _clients(partition, config), f"[partition] use = {config.use!r}"
    try:
        parts = _partitioned(partition, train, kept, number, seeding.numpy_stream(seed, "partition"), where)
    except FAILURES as error:
        raise PluginError(f"{where} failed: {error}") from error
    check_number(parts, number, where)
    if is_lazy(parts):
        return _lazy(Checked(source=parts, kept=kept, where=where), labels, num_classes, config, seed)
    return _listed([kept[part] for part in check_list(parts, len(kept), where)], labels, num_classes, seed)


def _partitioned(
    partition: Partitioner, train: ImageSet, kept: Indices, clients: int, rng: np.random.Generator, where: str
) -> Any:
    """Return what the partitioner makes of the kept images; of whole groups where there are any."""
    labels, groups = train.labels[kept], groups_of(train)
    if groups is None:
        return partition(labels, clients, rng)
    return partition_groups(partition, labels, groups[kept], clients, rng, column=train.group, where=where)


def _listed(lists: Sequence[Indices], labels: Indices, num_classes: int, seed: int) -> Split:
    clients = tuple(np.sort(part) for part in lists)
    everything = np.concatenate(clients)
    return Split(
        clients=clients,
        left_out=np.setdiff1d(np.arange(len(labels)), everything, assume_unique=True),
        labels=labels,
        totals=np.bincount(labels[everything], minlength=num_classes),
        exact=True,
        shown=_shown(len(clients), LISTED, seed),
        digest=_digest(clients),
    )


def _lazy(clients: Checked, labels: Indices, num_classes: int, config: PartitionConfig, seed: int) -> Split:
    shown = _shown(len(clients), SAMPLE, seed)
    table = {"use": config.use, "args": config.args, "clients": len(clients), "imbalance": config.imbalance}
    written = json.dumps({**table, "seed": seed}, sort_keys=True, default=str).encode()
    lists = [clients[int(client)] for client in shown]
    sample = _digest([labels, clients.kept, *lists])
    exact = len(lists) == len(clients)
    totals = _counts(lists, labels, num_classes).sum(axis=0) if exact else None
    return Split(
        clients=clients,
        left_out=np.setdiff1d(np.arange(len(labels)), clients.kept, assume_unique=True),
        labels=labels,
        totals=_expected(clients, labels, num_classes, seed) if totals is None else totals,
        exact=exact,
        shown=shown,
        digest=hashlib.sha256(written + sample.encode()).hexdigest(),
    )


def _clients(partition: Any, config: PartitionConfig) -> int:
    """Return the number of clients: as written, or as the partitioner's attribute ``clients`` says."""
    settled = config.clients if config.clients is not None else getattr(partition, "clients", None)
    if settled is None:
        raise ConfigError(
            f"partition.clients is missing; use = {config.use!r} does not settle it, so add clients = ..."
        )
    return int(settled)


def _shown(clients: int, longest: int, seed: int) -> Indices:
    """Return all clients where there are at most ``longest``, else a sample."""
    if clients <= longest:
        return np.arange(clients)
    return np.sort(seeding.numpy_stream(seed, "shown").choice(clients, SAMPLE, replace=False))


def _expected(clients: Checked, labels: Indices, num_classes: int, seed: int) -> Indices:
    """Return a lazy sequence's class counts [C]: as it tells them, or scaled up from some of its clients.

    A class that has images has one at least: it is rare, not absent.
    """
    there = np.bincount(labels[clients.kept], minlength=num_classes) > 0
    told = getattr(clients.source, "expected_counts", None)
    if told is None:
        some = min(len(clients), ESTIMATED_FROM)
        asked = seeding.numpy_stream(seed, "estimate").choice(len(clients), some, replace=False)
        counts = _counts([clients[int(client)] for client in asked], labels, num_classes)
        told = counts.sum(axis=0) * (len(clients) / some)
    numbers = np.asarray(told)
    usable = numbers.ndim == 1 and len(numbers) <= num_classes and np.issubdtype(numbers.dtype, np.number)
    if not usable or not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise DataError(
            f"{clients.where}: expected_counts must be at most {num_classes} finite numbers >= 0, one for "
            f"each class, not {numbers.dtype} {list(numbers.shape)}"
        )
    totals = np.zeros(num_classes, np.int64)
    # The cumulated numbers are rounded, so that the sum is off by less than one.
    totals[: len(numbers)] = np.diff(np.rint(np.cumsum(numbers)), prepend=0)
    return np.maximum(totals, there)


def _counts(lists: Sequence[Indices], labels: Indices, num_classes: int) -> Indices:
    owner = np.repeat(np.arange(len(lists)), [len(part) for part in lists])
    cell = owner * num_classes + labels[np.concatenate(lists)]
    return np.bincount(cell, minlength=len(lists) * num_classes).reshape(len(lists), num_classes)


def _digest(lists: Sequence[Indices]) -> str:
    """Hash sizes and image numbers as little-endian int64, the same bytes on every machine."""
    sizes = np.array([len(part) for part in lists])
    return hashlib.sha256(np.concatenate([sizes, *lists]).astype("<i8").tobytes()).hexdigest()
