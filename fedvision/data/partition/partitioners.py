"""Partitions: how one set of labelled images is spread over K simulated clients.

Each factory returns a ``Partitioner``: ``partition(labels [N], clients, rng) -> list of K index arrays``,
disjoint, complete, sorted, each client with at least one image, and the same for the same generator. All of
them fill one array ``owner [N]`` (the client of each image) without a loop over clients or images.

- ``iid``: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
  arXiv:1602.05629.
- ``shards``: the same paper's sorted shards, here cut inside classes so that "at most k classes" is exact.
- ``dirichlet``: Hsu et al. 2019, arXiv:1909.06335, in the per-class form of Yurochkin et al. 2019,
  arXiv:1905.12022, and Li et al. 2022, arXiv:2102.02079; clients that come out too small are filled from the
  largest ones instead of drawing again until all are large enough.
- ``quantity``: sizes by a power law, the same mixture of classes everywhere.
- ``column``: natural clients, one for each value of a column (a hospital, a camera, a writer), or several
  values each.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.naming import composed, in_order, is_missing
from fedvision.errors import DataError
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from fedvision.types import Partitioner

Indices = NDArray[np.int64]


def iid() -> Partitioner:
    """Spread the images at random; sizes differ by one image at most."""

    def partition(labels: Indices, clients: int, rng: np.random.Generator) -> list[Indices]:
        _check(labels, clients)
        owner = np.empty(len(labels), np.int64)
        owner[rng.permutation(len(labels))] = np.arange(len(labels)) % clients
        return _lists(owner, clients)

    return partition


def dirichlet(*, alpha: float, min_per_client: int = 1) -> Partitioner:
    """Spread each class by its own shares p_c ~ Dirichlet(alpha, ..., alpha) over the clients.

    Client k gets n_c p_ck images of class c, rounded up or down so that the expectation is exact and no image
    is lost. A client below ``min_per_client`` is filled from whichever clients are largest. Others draw all
    shares again until every client has 10 images (NIID-Bench, Li et al. 2022, arXiv 2102.02079), which makes
    splits milder than alpha says and may not end with many clients; filling keeps the draw. Set
    ``min_per_client = 10`` where clients are to be as large as theirs.

    Args:
        alpha: Concentration, > 0: 0.1 is strongly skewed, 100 is nearly iid.
        min_per_client: Fewest images of a client, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """
    check_range(above=0, alpha=alpha)
    check_range(at_least=1, min_per_client=min_per_client)

    def partition(labels: Indices, clients: int, rng: np.random.Generator) -> list[Indices]:
        _check(labels, clients, min_per_client)
        order, counts = _by_class(labels, rng)
        owner = np.empty(len(labels), np.int64)
        concentration = np.full(clients, alpha)
        owner[order] = np.concatenate([_deal(n, rng.dirichlet(concentration), rng) for n in counts])
        return _lists(_fill(owner, clients, min_per_client, rng), clients)

    return partition


def shards(*, classes_per_client: int = 2) -> Partitioner:
    """Cut every class into shards of about equal size and deal ``classes_per_client`` of them to each client.

    No client holds more than ``classes_per_client`` classes, and every image is used. Where there are fewer
    images than shards, a shard is one image and some clients get fewer shards.

    Raises:
        ValueError: ``classes_per_client`` is below 1.
    """
    check_range(at_least=1, classes_per_client=classes_per_client)

    def partition(labels: Indices, clients: int, rng: np.random.Generator) -> list[Indices]:
        _check(labels, clients)
        order, counts = _by_class(labels, rng)
        total = min(clients * classes_per_client, len(labels))
        if total < len(counts):
            raise DataError(
                f"partition.clients = {clients} with classes_per_client = {classes_per_client} is "
                f"{total} shards, too few for {len(counts)} classes; raise one of the two"
            )
        cuts = _level(_apportion(total, counts.astype(np.float64)), 1)
        first = np.repeat(np.cumsum(cuts) - cuts, counts)
        shard = first + _rank(counts) * np.repeat(cuts, counts) // np.repeat(counts, counts)
        owner = np.empty(len(labels), np.int64)
        owner[order] = (rng.permutation(total) % clients)[shard]
        return _lists(owner, clients)

    return partition


def quantity(*, exponent: float = 1.0, min_per_client: int = 1) -> Partitioner:
    """Spread the images at random over clients whose sizes fall as (k + 1) ** -exponent, client 0 first.

    Args:
        exponent: >= 0; 0 makes equal clients, 1 is Zipf's law.
        min_per_client: Fewest images of a client, >= 1; what it takes comes from the largest clients.

    Raises:
        ValueError: An argument is out of range.
    """
    check_range(at_least=0, exponent=exponent)
    check_range(at_least=1, min_per_client=min_per_client)

    def partition(labels: Indices, clients: int, rng: np.random.Generator) -> list[Indices]:
        _check(labels, clients, min_per_client)
        weights = np.arange(1, clients + 1, dtype=np.float64) ** -exponent
        sizes = _level(_apportion(len(labels), weights), min_per_client)
        owner = np.empty(len(labels), np.int64)
        owner[rng.permutation(len(labels))] = np.repeat(np.arange(clients), sizes)
        return _lists(owner, clients)

    return partition


@dataclass(frozen=True, eq=False)
class ByColumn:
    """The partitioner of ``column``; its attribute ``clients`` lets the experiment leave the number out."""

    name: str
    """The column."""
    clients: int
    """Distinct values of the column."""
    owner: Indices
    """int64 [N]: place of each image's value among the sorted values."""
    names: tuple[str, ...] = ()
    """The values, in the order of the clients."""

    def __call__(self, labels: Indices, clients: int, rng: np.random.Generator) -> list[Indices]:
        """Return the images of each value, by value; nothing is random."""
        if clients != self.clients:
            raise DataError(
                f"partition.clients = {clients}, but column {self.name!r} has {self.clients} values; "
                f"write clients = {self.clients} or leave it out, or merge = true for fewer clients with "
                "several values each"
            )
        if len(labels) != len(self.owner):
            raise DataError(
                f"column {self.name!r} has {len(self.owner)} rows for {len(labels)} images; give one for each"
            )
        return _lists(self.owner, clients)


@dataclass(frozen=True, eq=False)
class Merged:
    """The partitioner of ``column`` with ``merge``: several values a client."""

    column: ByColumn
    """A client for each value."""

    def __call__(self, labels: Indices, clients: int, rng: np.random.Generator) -> list[Indices]:
        """Deal the values to clients of about equal size.

        Largest first, each to the client that has fewest images (Graham 1969, "Bounds on Multiprocessing
        Timing Anomalies"); equal ones in a random order.
        """
        values = self.column.clients
        if not 1 <= clients <= values:
            raise DataError(
                f"partition.clients = {clients}, but column {self.column.name!r} has {values} values to "
                f"merge; write 1 to {values}"
            )
        parts = self.column(labels, values, rng)
        shuffled = rng.permutation(values).tolist()
        heap = [(0, client) for client in range(clients)]
        owner = np.empty(values, np.int64)
        for value in sorted(shuffled, key=lambda value: -len(parts[value])):
            images, client = heapq.heappop(heap)
            owner[value] = client
            heapq.heappush(heap, (images + len(parts[value]), client))
        return _lists(owner[self.column.owner], clients)


def column(*, name: str, columns: Mapping[str, NDArray[Any]], merge: bool = False) -> Partitioner:
    """Make one client of each distinct value of a column, by value where all are numbers, else as text.

    Args:
        name: The column.
        columns: The images' columns by name, each [N]; passed by the program, not by the experiment.
        merge: Whether ``partition.clients`` clients, fewer than there are values, get several values each.

    Raises:
        DataError: Some images have no value.
        ValueError: There is no such column, or its values cannot be sorted.
    """
    if name not in columns:
        there = f"there are: {', '.join(sorted(columns))}" if columns else "these images have no columns"
        raise ValueError(f"there is no column {name!r}; {there}")
    values, owner = values_of(columns[name], f"column {name!r}")
    natural = ByColumn(name, len(values), owner, tuple(values))
    return Merged(natural) if merge else natural


def values_of(column: NDArray[Any], where: str) -> tuple[list[str], Indices]:
    """Return the distinct values of a column in order, and the place of each image's value int64 [N].

    The order is by value where all are numbers, else as text.

    Raises:
        DataError: A value is missing.
        ValueError: Values cannot be sorted.
    """
    try:
        found, place = np.unique(column, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"{where} mixes kinds of values ({error}); make them all text") from error
    texts = [composed(str(value)) for value in found.tolist()]
    if lost := {i for i, text in enumerate(texts) if is_missing(text)}:
        rows = np.flatnonzero(np.isin(place, list(lost)))
        raise DataError(
            f"{where} is {texts[min(lost)]!r} for {len(rows):,} of {len(column):,} images, the first of them "
            f"number {rows[0]}; no client can be made of a missing value: fill it in or remove them"
        )
    names = in_order(texts)
    number = {text: i for i, text in enumerate(names)}
    return names, np.array([number[text] for text in texts], np.int64)[place.ravel()]


def _check(labels: Indices, clients: int, min_per_client: int = 1) -> None:
    if clients < 1:
        raise DataError(f"partition.clients must be >= 1, not {clients}")
    if clients > len(labels):
        raise DataError(f"partition.clients = {clients} is more than the {len(labels)} images; lower it")
    if clients * min_per_client > len(labels):
        raise DataError(
            f"partition.min_per_client = {min_per_client} for {clients} clients is more than the "
            f"{len(labels)} images; lower one of the two"
        )


def _lists(owner: Indices, clients: int) -> list[Indices]:
    """Return the images [n] of each client, sorted."""
    order = np.argsort(owner, kind="stable").astype(np.int64, copy=False)
    return np.split(order, np.cumsum(np.bincount(owner, minlength=clients))[:-1])


def _by_class(labels: Indices, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Return the images sorted by class, at random within each, and the sizes of the classes there are."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return order, np.unique(labels, return_counts=True)[1].astype(np.int64)


def _rank(sizes: Indices) -> Indices:
    """Return 0, 1, ..., sizes[0] - 1, 0, 1, ...: the place of each item within its run."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _deal(items: int, shares: NDArray[np.float64], rng: np.random.Generator) -> Indices:
    """Return the client of each of ``items`` images: share x items each, rounded up or down.

    Systematic sampling: the cumulated shares move by one common random offset before they are cut to whole
    numbers, so that each client's expectation is exact and rounding favours nobody.
    """
    edges = np.minimum(np.floor(np.cumsum(shares) * items + rng.random()), items).astype(np.int64)
    edges[-1] = items
    return np.repeat(np.arange(len(shares)), np.diff(edges, prepend=0))


def _apportion(total: int, weights: NDArray[np.float64]) -> Indices:
    """Return whole numbers that sum to ``total`` in proportion to weights, by largest remainders."""
    quota = total * weights / weights.sum()
    seats: Indices = np.floor(quota).astype(np.int64)
    rest = total - int(seats.sum())
    seats[np.argsort(seats - quota, kind="stable")[:rest]] += 1
    return seats


def _level(sizes: Indices, minimum: int) -> Indices:
    """Raise sizes below a minimum to it and take the difference from the largest, one by one.

    Taking one from whichever is largest, again and again, cuts all that stand above some level down to it;
    the level is found by bisection.
    """
    missing = int(np.maximum(minimum - sizes, 0).sum())
    low, high = minimum, int(sizes.max()) + 1
    while high - low > 1:
        middle = (low + high) // 2
        enough = int(np.maximum(sizes - middle, 0).sum()) >= missing
        low, high = (middle, high) if enough else (low, middle)
    taken = np.maximum(sizes - low, 0)
    taken[np.flatnonzero(taken)[: int(taken.sum()) - missing]] -= 1
    return np.maximum(sizes, minimum) - taken


def _fill(owner: Indices, clients: int, minimum: int, rng: np.random.Generator) -> Indices:
    """Move random images of the largest clients to those below the minimum.

    Neighbours in the list of moved images share a giver, so a filled client stays skewed.
    """
    sizes = np.bincount(owner, minlength=clients)
    wanted = _level(sizes, minimum)
    order, _ = _by_class(owner, rng)
    moved = order[_rank(sizes) >= np.repeat(wanted, sizes)]
    filled = owner.copy()
    filled[moved] = np.repeat(np.arange(clients), np.maximum(wanted - sizes, 0))
    return filled
