"""One split of the training images: the long tail first, then the partition, the holdout, and every check.

What a client trains on is decided here and nowhere else: ``Split.clients``, and all counts called training
images (of losses, of head and tail, of reports) are counted from it, after the holdout.

A split depends on labels, columns, the partition's table and the root seed alone; ``digest`` proves that two
machines made the same one. Of a list of clients everything is there and counted. Of a lazy sequence
(``types.LazyClients``) nothing is held for a client, and the federation's class counts are an expectation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedvision import registry, seeding
from fedvision.config import PartitionConfig
from fedvision.data.dataset import ImageSet
from fedvision.data.naming import visible
from fedvision.data.partition import longtail_subsampling, tail_clients
from fedvision.data.partition.expectation import expected
from fedvision.data.partition.group_holdout import held_out_groups
from fedvision.data.partition.groups import groups_of, partition_groups
from fedvision.data.partition.holdout import check_share, reserve
from fedvision.data.partition.partition_validation import FAILURES, Checked, check_list, check_number, is_lazy
from fedvision.data.partition.partitioners import ByColumn
from fedvision.data.targets import ClassCounter, Targets, check_classes, count, count_each
from fedvision.data.targets import strata as strata_of
from fedvision.errors import ConfigError, PluginError
from fedvision.types import LazyClients, Partitioner

Indices = NDArray[np.int64]
Clients: TypeAlias = "tuple[Indices, ...] | Checked"
LISTED, SAMPLE = 10_000, 100
"""Reports show all of a list of at most ``LISTED`` clients; of more, and of lazy ones, ``SAMPLE`` of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Which client has which training images."""

    clients: Clients
    """The images that each client trains on, a sorted int64 array [n] of image numbers, none empty; in
    memory or made on access."""
    held: tuple[Indices, ...] = ()
    """The images that each client of a list measures on, likewise; none at all without a holdout."""
    left_out: Indices
    """Sorted int64 image numbers that no client has: dropped by the long tail or by a list's partition."""
    held_out: int = 0
    """How many images are kept from training to measure on."""
    labels: Targets
    """The images' targets [N, ...]."""
    counter: ClassCounter = count
    """Returns the class counts of some of them."""
    totals: Indices
    """int64 [C]: training images of each class over all clients, an image counted once for each client that
    trains on it."""
    distinct: Indices
    """int64 [C]: the same with every image counted once, however many clients train on it. The losses'
    prior and the groups of frequent and rare classes are made of these: a million clients that share 1,000
    images have no more to learn from than 1,000 images."""
    exact: bool
    """Whether ``totals`` and ``distinct`` were counted; else they are expectations, rounded."""
    shown: Indices
    """int64, rising: the clients that reports show, all or a sample that the root seed draws."""
    names: tuple[str, ...] = ()
    """The clients' names [K] where the data name them: the values of the column of natural clients."""
    tail: tuple[int, ...] = ()
    """The rare classes that ``partition.tail_clients`` brought together at few clients."""
    digest: str
    """SHA-256, hexadecimal: over the image numbers of a list's clients; else over labels, the partition's
    table, the seed and the image numbers of the clients shown."""

    @property
    def lazy(self) -> bool:
        """Whether clients are made on access, and may share images."""
        return not isinstance(self.clients, tuple)

    @property
    def sampled(self) -> bool:
        """Whether reports show a sample of the clients and not all."""
        return len(self.shown) < len(self.clients)

    def size(self, client: int) -> int:
        """Return how many images a client trains on; a lazy one is not made for it where its source knows."""
        return self.clients.size(client) if isinstance(self.clients, Checked) else len(self.clients[client])

    def test(self, client: int) -> Indices:
        """Return the images that a client measures on, sorted int64 [m]; none without a holdout."""
        if isinstance(self.clients, Checked):
            return self.clients.halves(client).test
        return self.held[client] if self.held else np.zeros(0, np.int64)

    def used(self) -> Indices:
        """Return the numbers of all images that a client trains or measures on; of lazy clients, of all."""
        if self.lazy:
            return np.arange(len(self.labels))
        return np.unique(np.concatenate([*self.clients, *self.held]))

    def counts(self, clients: Iterable[int] | None = None) -> Indices:
        """Count the training images of each class on some clients, all by default.

        Returns:
            int64 [K, C], a row for each client in the order given.
        """
        chosen = self.clients if clients is None else [self.clients[int(client)] for client in clients]
        return count_each(list(chosen), self.labels, len(self.totals), self.counter)

    def facts(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return what a run folder keeps of the split; its size does not grow with the number of clients.

        Args:
            classes: Names [C].
        """
        facts: dict[str, Any] = {"digest": self.digest, "classes": list(classes)}
        if self.sampled:
            facts |= {"clients": len(self.clients), "totals": self.totals, "exact": self.exact}
            facts |= {"shown": self.shown}
        if self.lazy:
            facts |= {"distinct": self.distinct}
        facts |= {"counts": self.counts(self.shown), "left_out": len(self.left_out)}
        if self.names:
            facts |= {"names": [self.names[client] for client in self.shown.tolist()]}
        return facts | ({"held_out": self.held_out} if self.held_out else {})


def elsewhere(num_classes: int) -> Split:
    """Return the split of images that are on other machines: nothing is known of it."""
    none = np.zeros(0, np.int64)
    return Split(
        clients=(),
        left_out=none,
        labels=none,
        totals=np.zeros(num_classes, np.int64),
        distinct=np.zeros(num_classes, np.int64),
        exact=False,
        shown=none,
        digest="",
    )


def make(
    train: ImageSet,
    config: PartitionConfig,
    *,
    num_classes: int,
    seed: int,
    holdout: float = 0.0,
    strata: Callable[[Targets], Indices] = strata_of,
    counter: ClassCounter = count,
) -> Split:
    """Split training images over clients.

    Args:
        train: The images.
        config: The partition and the global long tail.
        num_classes: C.
        seed: The experiment's root seed.
        holdout: Share of each client's images that it keeps from training to measure on, >= 0 and < 1.
        strata: Targets -> int64 [N], by what images are spread.
        counter: Returns the class counts of targets.

    Raises:
        ConfigError: ``partition.clients`` is missing where nothing settles it.
        PluginError: The partition is unknown, its arguments do not fit, or it failed.
        DataError: There are too few images, a label or the holdout is out of range, or the partition's
            result is unusable.
    """
    check_share(holdout)
    check_classes(train.labels, num_classes)
    spread = strata(train.labels)
    retained = longtail_subsampling.subsample(
        spread, config.imbalance, seeding.numpy_stream(seed, "longtail"), num_classes
    )
    columns = {name: values[retained] for name, values in train.columns.items()}
    partition = registry.build("partition", config, columns=columns)
    number, where = _clients(partition, config), f"[partition] use = {config.use!r}"
    try:
        own = registry.is_builtin("partition", config.use)
        with nullcontext() if own else seeding.global_streams(seed, "partition"):
            rng = seeding.numpy_stream(seed, "partition")
            parts = _partitioned(partition, train, spread, retained, number, rng, where)
    except FAILURES as error:
        raise PluginError(f"{where} failed: {error}") from error
    check_number(parts, number, where)
    if config.tail_clients:
        tail_clients.check(config.tail_clients, config.use, partition, parts, train)
    if is_lazy(parts):
        held = _held_apart(parts, retained, spread, where, holdout, seed)
        return _lazy(held, train.labels, spread, num_classes, config, seed, counter)
    found = check_list(parts, len(retained), where)
    tail: tuple[int, ...] = ()
    if config.tail_clients:
        rng = seeding.numpy_stream(seed, "tail-clients")
        found, tail = tail_clients.concentrate(found, spread[retained], config.tail_clients, rng)
    lists = [np.sort(retained[part]) for part in found]
    made = replace(_listed(lists, train, strata, num_classes, holdout, seed, counter), tail=tail)
    if not isinstance(partition, ByColumn):
        return made
    return replace(made, names=tuple(visible(name) for name in partition.names))


def _partitioned(
    partition: Partitioner,
    train: ImageSet,
    strata: Indices,
    retained: Indices,
    clients: int,
    rng: np.random.Generator,
    where: str,
) -> Any:
    """Return what the partitioner makes of the kept images; of whole groups where there are any."""
    labels, groups = strata[retained], groups_of(train)
    if groups is None:
        return partition(labels, clients, rng)
    return partition_groups(
        partition, labels, groups[retained], clients, rng, column=train.group, where=where
    )


def _listed(
    lists: Sequence[Indices],
    images: ImageSet,
    strata: Callable[[Targets], Indices],
    num_classes: int,
    holdout: float,
    seed: int,
    counter: ClassCounter,
) -> Split:
    """Return the split of clients that share no image; each keeps images of its own from training."""
    labels, groups = images.labels, groups_of(images)
    train, held = tuple(lists), []
    if holdout:
        # Stream and strata are the client's own: its halves do not depend on what others there are.
        masks = [
            held_out_groups(
                strata(labels[part]),
                None if groups is None else groups[part],
                holdout,
                seeding.numpy_stream(seed, "holdout", client),
            )
            for client, part in enumerate(lists)
        ]
        train = tuple(part[~mask] for part, mask in zip(lists, masks, strict=True))
        held = [part[mask] for part, mask in zip(lists, masks, strict=True)]
    totals = counter(labels[np.concatenate(train)], num_classes)
    return Split(
        clients=train,
        held=tuple(held),
        left_out=np.setdiff1d(np.arange(len(labels)), np.concatenate(lists), assume_unique=True),
        held_out=sum(map(len, held)),
        labels=labels,
        counter=counter,
        totals=totals,
        distinct=totals,
        exact=True,
        shown=_shown(len(lists), LISTED, seed),
        digest=_digest(lists),
    )


def _held_apart(
    parts: LazyClients, retained: Indices, strata: Indices, where: str, holdout: float, seed: int
) -> Checked:
    """Return a lazy sequence of which no client trains on what another one measures on."""
    if not holdout:
        return Checked(source=parts, retained=retained, where=where)
    held = reserve(strata[retained], holdout, seeding.numpy_stream(seed, "holdout"))
    divide = getattr(parts, "with_holdout", None)
    try:
        divided = divide(held, holdout) if callable(divide) else None
    except FAILURES as error:
        raise PluginError(f"{where} failed: {error}") from error
    return Checked(source=parts, retained=retained, where=where, held=held, divided=divided)


def _lazy(
    clients: Checked,
    labels: Targets,
    strata: Indices,
    num_classes: int,
    config: PartitionConfig,
    seed: int,
    counter: ClassCounter,
) -> Split:
    shown = _shown(len(clients), SAMPLE, seed)
    table = {"use": config.use, "args": config.args, "clients": len(clients), "imbalance": config.imbalance}
    written = json.dumps({**table, "seed": seed}, sort_keys=True, default=str).encode()
    halves = [clients.halves(int(client)) for client in shown]
    sample = _digest([strata, clients.retained, *(np.sort(np.concatenate(pair)) for pair in halves)])
    if exact := len(halves) == len(clients):
        lists = [pair.train for pair in halves]
        totals = count_each(lists, labels, num_classes, counter).sum(axis=0)
        distinct = counter(labels[np.unique(np.concatenate(lists))], num_classes)
    else:
        totals, distinct = expected(clients, labels, num_classes, seed, counter)
    return Split(
        clients=clients,
        left_out=np.setdiff1d(np.arange(len(labels)), clients.retained, assume_unique=True),
        held_out=0 if clients.held is None else int(clients.held.sum()),
        labels=labels,
        counter=counter,
        totals=totals,
        distinct=distinct,
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


def _digest(lists: Sequence[Indices]) -> str:
    """Hash sizes and image numbers as little-endian int64, the same bytes on every machine."""
    sizes = np.array([len(part) for part in lists])
    return hashlib.sha256(np.concatenate([sizes, *lists]).astype("<i8").tobytes()).hexdigest()
