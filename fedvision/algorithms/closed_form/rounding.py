"""Features and class weights as whole numbers, of which sums have the same bits in any order and grouping.

Features x [D] of a backbone are standardised with constants m and s that all clients are sent, cut off and
rounded to 11 bits (``models.standardised``). So a feature is off by 1/256 of its deviation, and by more where
it is 8 deviations away. A product of two has 20 bits, and a weighted sum over a million images 45: a float64
matrix product of a block of images is exact.

The constants follow from sums of x and x^2 on a grid of 2^-24.

Shape letters: N images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fedvision.models.standardised import CUT, in_steps

GRID = 1 << 24
"""Steps of 1 to which features and their squares are rounded before their moments are added."""
LARGEST = float(1 << 12)
"""Magnitude of a feature above which it is refused."""
FINEST = 8
"""Weight of the most frequent class where weights differ: they are off by 1/16 at most."""
_EXACT = 1 << 53
_LEAST_VARIANCE = 2.0**-24
_LEAST_OF_BINARY = 2.0**-6
"""So that a feature that is seldom 1 is not cut off: 1 is at most 8 deviations from the mean."""
MOST_FEATURES = 8192
"""Features of which a client sends 34 million products, 170 MB of five bytes each."""


def on_grid(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [N, D] and their squares in whole steps of the grid, int64.

    Raises:
        ValueError: A feature is not finite or above 2^12.
    """
    wide = features.double()
    if not bool((wide.abs() <= LARGEST).all()):
        raise ValueError("the backbone's features hold NaN, infinity or numbers above 4096; scale them down")
    return (wide * GRID).round().long(), (wide.square() * GRID).round().long()


def constants(count: int, sums: NDArray[np.int64], squares: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """Return mean and deviation [D], float64, of the features of all images.

    Args:
        count: N.
        sums: Of the features in steps of the grid, int64 [D].
        squares: Of their squares, int64 [D].

    Returns:
        ``mean`` and ``deviation``; a feature that hardly varies has the deviation 2^-12, and one that is 0 or
        1 has 2^-3 at least.
    """
    # Python's whole numbers do not lose the small difference of two large ones.
    means = [total / (count * GRID) for total in sums.tolist()]
    variances = [
        (count * GRID * square - total * total) / (count * GRID) ** 2
        for total, square in zip(sums.tolist(), squares.tolist(), strict=True)
    ]
    mean = torch.tensor(means, dtype=torch.float64)
    variance = torch.tensor(variances, dtype=torch.float64)
    # Of features that are 0 or 1 alone, the sums of values and of squares are equal.
    binary = torch.from_numpy((sums == squares) & (sums > 0)).double()
    least = _LEAST_VARIANCE + binary * (_LEAST_OF_BINARY - _LEAST_VARIANCE)
    return {"mean": mean, "deviation": torch.maximum(variance, least).sqrt()}


def rounded(features: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return standardised features [N, D] in whole steps, float64.

    Args:
        features: Of the backbone.
        tensors: ``mean`` and ``deviation``, float64 [D].

    Raises:
        ValueError: A feature is not finite.
    """
    if not bool(torch.isfinite(features).all()):
        raise ValueError("the backbone's features hold NaN or infinity")
    return in_steps(features, tensors["mean"], tensors["deviation"])


def class_weights(counts: NDArray[np.int64], balance: float) -> NDArray[np.int64]:
    """Return whole-number weights u [C] of an image by its class, close to multiples of n_c^-balance.

    Args:
        counts: Training images of each class, int64 [C]; a class of none counts as one of one image.
        balance: t, 0 <= t <= 1; 0 weighs all images alike and 1 all classes.

    Returns:
        int64 [C], 1 for all where t is 0, else ``FINEST`` for the most frequent class.
    """
    if balance == 0:
        return np.ones(len(counts), np.int64)
    numbers = np.maximum(counts, 1).astype(np.float64)
    return np.array(np.rint(FINEST * (numbers.max() / numbers) ** balance), np.int64)


def bits_of_products(counts: NDArray[np.int64], weights: NDArray[np.int64]) -> int:
    """Return the whole bytes, in bits, that hold each sum of weighted products of rounded features.

    Args:
        counts: Images of each class [C].
        weights: u [C].
    """
    most = total_weight(counts, weights) * CUT * CUT
    return min(64, -(-(most.bit_length() + 1) // 8) * 8)


def total_weight(counts: NDArray[np.int64], weights: NDArray[np.int64]) -> int:
    """Return sum_c u_c n_c."""
    return sum(n * u for n, u in zip(counts.tolist(), weights.tolist(), strict=True))


def weighted_products(steps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return sum_i u_i q_i q_i^T over a block of images, exactly, int64 [D, D].

    Args:
        steps: q, whole numbers as float64 [N, D].
        weights: u_i, int64 [N].

    Raises:
        ValueError: The block is so large that float64 may round.
    """
    if int(weights.abs().sum()) * CUT * CUT >= _EXACT:
        raise ValueError(f"{len(weights)} images weigh too much for an exact product; take fewer at a time")
    return ((steps * weights[:, None].double()).T @ steps).long()


def block_size(largest_weight: int, most: int = 512) -> int:
    """Return of how many images at most ``weighted_products`` is exact whatever their classes are."""
    return max(1, min(most, (_EXACT - 1) // (max(1, largest_weight) * CUT * CUT)))
