"""``population``: more clients than a data set has images for, each made on access.

Client k is a pure function of (seed, k, labels), in any order of access; an idle client costs no memory, so
a million of them cost as much as ten. The recipe of Hsu, Qi, Brown 2019, "Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification", arXiv:1909.06335, section 3: the client
draws its mixture of classes p ~ Dirichlet(alpha C q), q the data set's own mixture of its C classes, and then
that many images of each class out of the class's pool. So E[p] = q, and on balanced classes alpha means what
it means for ``dirichlet``: 0.1 is strongly skewed, 100 is nearly iid. The paper draws from Dirichlet(a q), so
a is C alpha: its a = 1 on ten classes is alpha = 0.1 here. Two more things differ from the paper:

- Sizes are log-normal, not equal, so that a few clients have much and many have little.
- The pools are never used up. A population is larger than its data set, so **the same image belongs to
  several clients**; within one client an image is there once. With a holdout the images are divided first:
  what clients measure on is trained on by none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvision import seeding
from fedvision.errors import DataError
from fedvision.ranges import check_range

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

    def mean_short(self, share: float) -> float:
        """E[max(0, 1 - share X)] of the rounded size X: by how much a share of it lies below one image.

        The mean over 2,000 equally likely log-normal sizes.
        """
        if self.lowest * share >= 1:
            return 0.0
        grid = [_NORMAL.inv_cdf((place + 0.5) / 2000) for place in range(2000)]
        size = np.clip(np.exp(self.location + self.sigma * np.array(grid)), self.lowest, self.highest)
        low, up = np.floor(size), size - np.floor(size)
        short = [np.maximum(0.0, 1 - share * rounded) for rounded in (low, low + 1)]
        return float(((1 - up) * short[0] + up * short[1]).mean())

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
        size, rng = self._begin(client)
        return self.images(size, self.mixture(rng), rng)

    def size(self, client: int) -> int:
        """Return client k's number of images; its stream begins with it, so no image is drawn."""
        return self._begin(client)[0]

    def _begin(self, client: int) -> tuple[int, np.random.Generator]:
        """Return client k's number of images and the rest of its stream."""
        rng = seeding.numpy_stream(self.seed, "population", client)
        return self.sizes.draw(rng), rng

    def mixture(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw a client's mixture of classes [C]."""
        return rng.dirichlet(self.alpha * len(self.pools) * self.pools / len(self.order))

    def images(self, size: int, mixture: NDArray[np.float64], rng: np.random.Generator) -> Indices:
        """Draw a number of different images of a mixture [C], sorted."""
        counts = _within(rng.multinomial(size, mixture), self.pools, rng)
        return np.sort(self.order[self._places(counts, rng)])

    def with_holdout(self, held: NDArray[np.bool_], share: float) -> DividedPopulation:
        """Return the same clients, each with a share of its images drawn from those that nobody trains on.

        Args:
            held: bool [N]: the images on which no client trains.
            share: Share of a client's images that are such.
        """
        return DividedPopulation(whole=self, train=self._among(~held), test=self._among(held), share=share)

    def _among(self, chosen: NDArray[np.bool_]) -> Population:
        """Return a population that draws from some of the images, bool [N], and from every class still."""
        at = chosen[self.order]
        ends = np.concatenate([[0], np.cumsum(at)])
        starts = ends[self.starts]
        pools = ends[self.starts + self.pools] - starts
        return replace(self, order=self.order[at], starts=starts, pools=pools)

    @property
    def expected_counts(self) -> NDArray[np.float64]:
        """Expected images of each label 0, 1, ... over all clients: K E[n] q.

        It is exact where no client draws more of a class than there is; what is too much comes from the
        other classes.
        """
        return self.by_label(self.clients * self.sizes.mean * self.pools / len(self.order))

    @property
    def expected_distinct(self) -> NDArray[np.float64]:
        """Expected different images of each label of all clients, as exact as ``expected_counts``."""
        return self.by_label(
            _different(self.sizes.mean * self.pools / len(self.order), self.pools, self.clients)
        )

    def by_label(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values [C] of the classes that have images by label; the others have 0."""
        by_label = np.zeros(int(self.classes[-1]) + 1)
        by_label[self.classes] = values
        return by_label

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


@dataclass(frozen=True, kw_only=True, eq=False)
class DividedPopulation:
    """The clients of a population, who train on one part of the images and measure on the other.

    ``divided[k]`` is what client k trains and measures on, both drawn with client k's own mixture. n images
    in all and a share s give n s of them to the measurement, rounded up or down at random; one at least
    trains.
    """

    whole: Population
    """The population; a client's size and mixture are the same as without a holdout."""
    train: Population
    """Draws from the images that clients train on."""
    test: Population
    """Draws from the images that no client trains on."""
    share: float
    """Share of a client's images to measure on, > 0 and < 1."""

    def __getitem__(self, client: int) -> tuple[Indices, Indices]:
        if not 0 <= client < self.whole.clients:
            raise IndexError(client)
        rng = seeding.numpy_stream(self.whole.seed, "population", client)
        size, mixture = self.whole.sizes.draw(rng), self.whole.mixture(rng)
        held, own = self._held(client, size)
        trained = self.train.images(size - held, mixture, rng)
        return trained, self.test.images(held, mixture, own)

    def size(self, client: int) -> int:
        """Return how many images client k trains on; none is drawn for it."""
        size = self.whole.size(client)
        return size - self._held(client, size)[0]

    @property
    def expected_counts(self) -> NDArray[np.float64]:
        """Expected images of each label that clients train on, an image counted once for each of them."""
        return self.whole.by_label(self._expected)

    @property
    def expected_distinct(self) -> NDArray[np.float64]:
        """Expected different images of each label that clients train on."""
        clients = self.whole.clients
        return self.whole.by_label(_different(self._expected / clients, self.train.pools, clients))

    @property
    def _expected(self) -> NDArray[np.float64]:
        whole = self.whole
        mean = whole.sizes.mean * (1 - self.share) + whole.sizes.mean_short(1 - self.share)
        expected: NDArray[np.float64] = whole.clients * mean * whole.pools / len(whole.order)
        return expected

    def _held(self, client: int, size: int) -> tuple[int, np.random.Generator]:
        """Return how many of client k's images it measures on, and a stream to draw them."""
        rng = seeding.numpy_stream(self.whole.seed, "population-holdout", client)
        wanted = math.floor(size * self.share + rng.random())
        fewest = size - len(self.train.order)
        return max(min(wanted, size - 1, len(self.test.order)), fewest), rng


def _different(drawn: NDArray[np.float64], pools: Indices, clients: int) -> NDArray[np.float64]:
    """Return how many different images are expected over all clients, float64 [C].

    A client that draws m of N images, none of them twice, misses one with probability 1 - E[m] / N, and
    clients draw independently: N (1 - (1 - E[m] / N)^K).

    Args:
        drawn: float64 [C]: images that one client is expected to draw of each class, at most ``pools``.
        pools: int64 [C]: images of each class.
        clients: K.
    """
    missed = 1 - np.minimum(drawn / np.maximum(pools, 1), 1)
    return np.asarray(pools * (1 - missed**clients), np.float64)


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
    check_range(above=0, alpha=alpha, mean_images=mean_images)
    check_range(at_least=0, at_most=10, sigma=sigma)
    check_range(at_least=1, min_images=min_images)
    if max_images is not None:
        check_range(at_least=1, max_images=max_images)

    def partition(labels: Indices, clients: int, rng: np.random.Generator) -> Population:
        highest = len(labels) if max_images is None else max_images
        _check_sizes(mean_images, min_images, highest, len(labels))
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


def _check_sizes(mean: float, lowest: int, highest: int, images: int) -> None:
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
