"""``population``: more clients than a data set has images for, each made when it is asked for.

Client k is a pure function of (seed, k, labels), whoever was asked before; an idle client costs no memory, so
a million of them cost as much as ten. The recipe of Hsu, Qi, Brown 2019, "Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification", arXiv:1909.06335, section 3: the client
draws its mixture of classes p ~ Dirichlet(alpha C q), q the data set's own mixture of its C classes, and then
that many images of each class out of the class's pool. So E[p] = q, and on balanced classes alpha means what
it means for ``dirichlet``: 0.1 is strongly skewed, 100 is nearly iid. Two things differ from the paper:

- Sizes are log-normal, not equal, so that a few clients have much and many have little.
- The pools are never used up. A population is larger than its data set, so **the same image belongs to
  several clients**; within one client an image is there once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvision import seeding
from fedvision.errors import DataError

if TYPE_CHECKING:
    from fedvision.types import Partitioner

Indices = NDArray[np.int64]
_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of images: log-normal, cut to a range, with an exact mean.

    X = exp(location + sigma Z) is cut to [lowest, highest] and then rounded up or down at random so that its
    expectation stays.
    """

    location: float
    """Mean of log X before the cut."""
    sigma: float
    """Standard deviation of log X before the cut."""
    lowest: int
    highest: int

    @classmethod
    def with_mean(cls, mean: float, sigma: float, lowest: int, highest: int) -> Sizes:
        """Find the location, by bisection, for which the mean after the cut is ``mean``."""
        low, high = (math.log(edge) + sign * (10 * sigma + 1) for edge, sign in ((lowest, -1), (highest, 1)))
        for _ in range(100):
            middle = (low + high) / 2
            below = cls(location=middle, sigma=sigma, lowest=lowest, highest=highest).mean < mean
            low, high = (middle, high) if below else (low, middle)
        return cls(location=(low + high) / 2, sigma=sigma, lowest=lowest, highest=highest)

    @property
    def mean(self) -> float:
        """E[X] after the cut: both ends' probabilities, and the log-normal's partial mean between them."""
        if self.sigma == 0:
            return min(max(math.exp(self.location), self.lowest), self.highest)
        a, b = ((math.log(edge) - self.location) / self.sigma for edge in (self.lowest, self.highest))
        between = _NORMAL.cdf(b - self.sigma) - _NORMAL.cdf(a - self.sigma)
        inside = math.exp(self.location + self.sigma**2 / 2) * between
        return self.lowest * _NORMAL.cdf(a) + inside + self.highest * _NORMAL.cdf(-b)

    def draw(self, rng: np.random.Generator) -> int:
        """Draw one size, ``lowest`` to ``highest``."""
        size = math.exp(self.location + self.sigma * rng.standard_normal())
        return math.floor(min(max(size, self.lowest), self.highest) + rng.random())


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """A lazy sequence of clients: ``population[k]`` is client k's sorted image numbers, int64 [n]."""

    seed: int
    """Root of every client's stream."""
    clients: int
    """K."""
    alpha: float
    """Concentration of the mixtures."""
    sizes: Sizes
    """How many images a client has."""
    order: Indices
    """int64 [N]: image numbers by class."""
    starts: Indices
    """int64 [C]: where each class that has images begins in ``order``."""
    pools: Indices
    """int64 [C]: images of each class that has some."""
    classes: Indices
    """int64 [C]: the labels of those classes, rising."""

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, client: int) -> Indices:
        if not 0 <= client < self.clients:
            raise IndexError(client)
        rng = seeding.numpy_stream(self.seed, "population", client)
        size = self.sizes.draw(rng)
        mixture = rng.dirichlet(self.alpha * len(self.pools) * self.pools / len(self.order))
        counts = _within(rng.multinomial(size, mixture), self.pools, rng)
        return np.sort(self.order[self._places(counts, rng)])

    def size(self, client: int) -> int:
        """Return client k's number of images; its stream begins with it, so no image is drawn."""
        return self.sizes.draw(seeding.numpy_stream(self.seed, "population", client))

    @property
    def expected_counts(self) -> NDArray[np.float64]:
        """Expected images of each label 0, 1, ... over all clients: K E[n] q.

        It is exact where no client draws more of a class than there is; what is too much comes from the
        other classes.
        """
        expected = np.zeros(int(self.classes[-1]) + 1)
        expected[self.classes] = self.clients * self.sizes.mean * self.pools / len(self.order)
        return expected

    def _places(self, counts: Indices, rng: np.random.Generator) -> Indices:
        """Return distinct places in ``order``, ``counts`` [C] of them in each class, equally likely all.

        Drawing again what is already there is quick while a class is mostly unused; of a class of which more
        than half is wanted, all images are shuffled.
        """
        dense = np.flatnonzero(2 * counts > self.pools)
        shuffled = [self.starts[c] + rng.permutation(self.pools[c])[: counts[c]] for c in dense]
        sparse = counts.copy()
        sparse[dense] = 0
        wanted = np.repeat(np.arange(len(counts)), sparse)
        found = np.zeros(0, np.int64)
        while len(wanted):
            drawn = self.starts[wanted] + (rng.random(len(wanted)) * self.pools[wanted]).astype(np.int64)
            found = np.sort(np.concatenate([found, drawn]))
            again = found[1:] == found[:-1]
            wanted = np.searchsorted(self.starts, found[1:][again], side="right") - 1
            found = np.concatenate([found[:1], found[1:][~again]])
        return np.concatenate([found, *shuffled])


def population(
    *,
    alpha: float,
    mean_images: float = 60.0,
    sigma: float = 1.0,
    min_images: int = 1,
    max_images: int | None = None,
) -> Partitioner:
    """Make clients by a generator: skewed mixtures, log-normal sizes, images shared between clients.

    Args:
        alpha: Concentration of the mixtures, > 0: 0.1 is strongly skewed, 100 is nearly iid.
        mean_images: Mean number of images of a client, from ``min_images`` to ``max_images``.
        sigma: Standard deviation of the logarithm of a client's number of images, 0 to 10; 0 makes equal
            clients, 1 gives a quarter of all images to 1 client in 20.
        min_images: Fewest images of a client, >= 1.
        max_images: Most images of a client; all images of the data set where it is left out.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be > 0 and finite, not {alpha}")
    if not 0 <= sigma <= 10:
        raise ValueError(f"sigma must be >= 0 and <= 10, not {sigma}")
    if min_images < 1:
        raise ValueError(f"min_images must be >= 1, not {min_images}")

    def partition(labels: Indices, clients: int, rng: np.random.Generator) -> Population:
        highest = len(labels) if max_images is None else max_images
        _check_range(mean_images, min_images, highest, len(labels))
        counts = np.bincount(labels)
        classes = np.flatnonzero(counts)
        return Population(
            seed=int(rng.integers(2**63)),
            clients=clients,
            alpha=alpha,
            sizes=Sizes.with_mean(mean_images, sigma, min_images, highest),
            order=np.argsort(labels, kind="stable").astype(np.int64, copy=False),
            starts=(np.cumsum(counts) - counts)[classes],
            pools=counts[classes],
            classes=classes,
        )

    return partition


def _check_range(mean: float, lowest: int, highest: int, images: int) -> None:
    if highest > images:
        raise DataError(
            f"partition.max_images = {highest} is more than the {images} images; a client has an image once"
        )
    if not lowest <= mean <= highest:
        raise DataError(
            f"partition.mean_images = {mean} must lie between min_images = {lowest} and "
            f"max_images = {highest}"
        )


def _within(counts: Indices, pools: Indices, rng: np.random.Generator) -> Indices:
    """Return counts [C] that fit the pools [C]: what is too much is drawn from all images that are left."""
    excess = int(np.maximum(counts - pools, 0).sum())
    if not excess:
        return counts
    held = np.minimum(counts, pools)
    return held + rng.multivariate_hypergeometric(pools - held, excess)
