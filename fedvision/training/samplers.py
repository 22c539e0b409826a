"""Samplers: which of a client's images an epoch takes, and in which order.

A sampler is ``sample(shard, rng) -> positions [n]`` with n the client's images: an epoch always has so many,
and an image may come several times or not at all. The generator is the client's own stream of the round, so
the same images come on every engine and machine, and after a resumed run. Those that go by class need one
class an image and refuse other targets; a class that the client lacks has no share.

Built-in samplers by class differ from their sources in one point: they do not draw each image by itself. Of n
images of an epoch, class c gets n q_c, rounded up or down so that the expectation is exact (systematic
sampling), and no image of it comes again before all its others came. So the share of a class is q_c in
expectation with less variance, and where q_c is the class's own share, the epoch is that of ``shuffle``, to
the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedvision import registry
from fedvision.data.shards import Shard
from fedvision.data.targets import one_class
from fedvision.errors import DataError, FedVisionError, PluginError, with_kind
from fedvision.ranges import check_range
from fedvision.types import PluginSpec

Sampler: TypeAlias = "Callable[[Shard, np.random.Generator], NDArray[np.int64]]"
"""``sample(shard, rng) -> int64 [n]``: positions in a shard of n images, for one epoch."""
_Weights: TypeAlias = "Callable[[NDArray[np.float64]], NDArray[np.float64]]"
"""Images of each class that there is, > 0 [P] -> what its share is in proportion to [P]."""


def shuffle() -> Sampler:
    """Take each image once, in a random order."""
    return lambda shard, rng: rng.permutation(len(shard))


def balanced() -> Sampler:
    """Take images of each class that the client has equally often: q_c = 1 / P of P classes.

    Class-balanced sampling of Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed
    Recognition", arXiv 1910.09217 (q = 0 there). Equal counts make it ``shuffle``.
    """
    return _by_class(np.ones_like)


def square_root() -> Sampler:
    """Take images of a class in proportion to the square root of its images: q_c ~ n_c^(1/2).

    Kang et al. 2020, arXiv 1910.09217 (q = 1/2 there), after Mahajan et al. 2018, arXiv 1805.00932. Equal
    counts make it ``shuffle``.
    """
    return _by_class(np.sqrt)


def effective(*, beta: float = 0.99) -> Sampler:
    """Weigh each image by 1 / the effective number of its class: q_c ~ n_c (1 - beta) / (1 - beta^n_c).

    Cui, Jia, Lin, Song, Belongie 2019, "Class-Balanced Loss Based on Effective Number of Samples", arXiv
    1901.05555, whose weights are on losses; here they are on draws. beta = 0 makes it ``shuffle``, beta -> 1
    ``balanced``.

    Args:
        beta: 0 <= beta < 1. Counts far below 1 / (1 - beta), 100 images by default, are balanced, and
            classes with far more keep their proportions; the counts are one client's.

    Raises:
        ValueError: beta is out of range.
    """
    check_range(at_least=0, below=1, beta=beta)

    def weights(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        if not beta:
            return counts
        found: NDArray[np.float64] = counts * (beta - 1) / np.expm1(counts * math.log(beta))
        return found

    return _by_class(weights)


def progressive(*, round: int = 1, rounds: int = 1) -> Sampler:
    """Go from ``shuffle`` to ``balanced`` over the rounds: q_c = (1 - t) n_c / n + t / P.

    Progressively balanced sampling of Kang et al. 2020, arXiv 1910.09217, with rounds in place of epochs:
    t = (round - 1) / (rounds - 1), so the first round is ``shuffle``'s and the last one ``balanced``'s.

    Args:
        round: The round, from 1 (known to the program).
        rounds: Rounds of the run (known to the program).
    """
    t = (round - 1) / max(rounds - 1, 1)
    return _by_class(lambda counts: (1 - t) * counts / counts.sum() + t / len(counts))


def sampler_maker(spec: PluginSpec, rounds: int) -> Callable[[int], Sampler]:
    """Return ``make(round) -> sampler`` for the many clients of a run; what a sampler returns is checked.

    Raises:
        PluginError: The sampler is unknown or its arguments do not fit.
    """
    build = registry.maker("sampler", spec, frozenset({"round", "rounds"}))

    def make(round: int) -> Sampler:
        sampler = build(round=round, rounds=rounds)
        return lambda shard, rng: _checked(spec.use, sampler, shard, rng)

    return make


def _checked(use: str, sampler: Sampler, shard: Shard, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return an epoch's positions [n].

    Raises:
        PluginError: The sampler fails, or returns something else.
        DataError: It refuses the shard.
    """
    where, images = f"training.sampler: {use!r}", len(shard)
    try:
        found = np.asarray(sampler(shard, rng))
    except FedVisionError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{where} failed: {with_kind(error)}") from error
    whole = found.shape == (images,) and np.issubdtype(found.dtype, np.integer)
    if not (whole and found.min() >= 0 and found.max() < images):
        raise PluginError(
            f"{where} must return a whole number from 0 to {images - 1} for each of an epoch's {images} "
            f"images, not {found.dtype} {list(found.shape)}"
            + (f" from {found.min()} to {found.max()}" if whole else "")
        )
    return found.astype(np.int64, copy=False)


def _by_class(weights: _Weights) -> Sampler:
    """Return the sampler whose classes have shares in proportion to weights of their counts."""

    def sample(shard: Shard, rng: np.random.Generator) -> NDArray[np.int64]:
        targets = shard.targets
        if not one_class(targets):
            raise DataError(
                "training.sampler goes by class and needs one class an image; leave it at 'shuffle' for "
                "images of several labels and other targets"
            )
        # The order comes first and all else from a stream of its own: an epoch in which each image comes
        # once is then ``shuffle``'s, and so are those after it.
        order = rng.permutation(len(shard))
        return np.repeat(np.arange(len(shard)), _times(targets, weights, rng.spawn(1)[0]))[order]

    return sample


def _times(labels: NDArray[np.int64], weights: _Weights, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return how often each of n images comes, int64 [n], n in all."""
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    shares = weights(counts.astype(np.float64))
    # A whole number that came out a hair below it stays whole.
    edges = np.round(np.cumsum(len(labels) * shares / shares.sum()), 9)
    edges[-1] = len(labels)
    drawn = np.diff(np.floor(edges + rng.random()).astype(np.int64), prepend=0)
    # The place of each image in a random order of its class: the first ones get what is left over.
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(place[shuffled], kind="stable")]
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    full, left = np.divmod(drawn, counts)
    times: NDArray[np.int64] = full[place] + (rank < left[place])
    return times
