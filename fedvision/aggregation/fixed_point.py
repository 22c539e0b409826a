"""Sums of real numbers that are exact: every number travels as a whole multiple of 2^-30.

Whole numbers of 64 bits add up to the same bits in any order and grouping, and modulo 2^64 they can be masked
(``masking``), so one form serves every engine and a deployment. A number is off by 2^-31 at most, so what is
much smaller than 1 should be scaled before it is summed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

UNIT = 2.0**-30
"""What a whole number stands for."""
MOST = 2.0**32
"""Magnitude of a number, and of a sum, above which it is refused; 2^62 units."""

FixedPoint = Mapping[str, NDArray[np.int64]]
"""Named arrays of whole numbers of units."""


def to_fixed_point(values: Mapping[str, torch.Tensor]) -> dict[str, NDArray[np.int64]]:
    """Return named numbers [...] in units, rounded to the nearest.

    Raises:
        ValueError: A number is not finite or above 2^32; the sentence names it.
    """
    found = {}
    for name, tensor in values.items():
        exact = tensor.detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(exact).all():
            raise ValueError(f"the sum {name!r} holds NaN or infinity")
        if exact.size and np.abs(exact).max() > MOST:
            raise ValueError(f"the sum {name!r} holds {np.abs(exact).max():.3g}, above 2^32; scale it down")
        found[name] = np.array(np.rint(exact / UNIT), np.int64, order="C")
    return found


def from_fixed_point(numbers: FixedPoint) -> dict[str, NDArray[np.float64]]:
    """Return what numbers of units stand for."""
    return {name: array.astype(np.float64) * UNIT for name, array in numbers.items()}


class FixedPointSum:
    """The running sum of named arrays that all have the same names and shapes."""

    def __init__(self) -> None:
        self.total: dict[str, NDArray[np.int64]] = {}
        """What was added so far."""

    def add(self, numbers: FixedPoint) -> None:
        """Add named arrays; nothing is added where they are refused.

        Raises:
            ValueError: Names or shapes are others than before, or a number or a sum is above 2^32.
        """
        if self.total and shapes(numbers) != shapes(self.total):
            raise ValueError("its sums have other names or shapes than those of other clients")
        limit = np.int64(MOST / UNIT)
        for name, array in numbers.items():
            if array.size and (array.max() > limit or array.min() < -limit):
                raise ValueError(f"the sum {name!r} is above 2^32")
        # Two numbers of 2^62 at most do not overflow.
        new = {name: array + self.total[name] if self.total else array for name, array in numbers.items()}
        for name, array in new.items():
            if array.size and (array.max() > limit or array.min() < -limit):
                raise ValueError(f"the sum {name!r} over all clients is above 2^32")
        self.total = new


def shapes(numbers: FixedPoint) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array."""
    return {name: array.shape for name, array in numbers.items()}
