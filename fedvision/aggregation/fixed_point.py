"""Sums that are exact: every number travels as a whole number of units, 1 for whole numbers, else 2^-30.

Whole numbers of 64 bits add up to the same bits in any order and grouping, and modulo 2^64 they can be masked
(``masking``), so one form serves every engine and a deployment. A real number is off by 2^-31 at most, so
what is much smaller than 1 should be scaled before it is summed; what is whole is not off at all.

Where it is known that totals fit fewer bits, numbers travel modulo 2^bits in whole bytes: what wraps around
in a summand does not show in the total.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

UNIT = 2.0**-30
"""What a whole number stands for where real numbers are summed."""
MOST = 1 << 62
"""Magnitude of a number, and of a sum, above which it is refused, in units; two of them do not overflow."""
BITS = 64
"""Of a number that travels whole."""

Sums: TypeAlias = "Mapping[str, NDArray[np.int64]]"
"""Named arrays of whole numbers of units."""
Signature: TypeAlias = "tuple[tuple[str, tuple[int, ...], bool], ...]"
"""Names, shapes, and whether the unit is 1, of named arrays."""


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Named arrays in units."""

    numbers: Sums = field(default_factory=dict)
    """Whole numbers of units by name."""
    whole: frozenset[str] = frozenset()
    """Names of the arrays whose unit is 1; that of the others is 2^-30."""

    @property
    def signature(self) -> Signature:
        """Return names, shapes and units, which are the same for all who answer the same query."""
        return tuple((name, self.numbers[name].shape, name in self.whole) for name in sorted(self.numbers))

    def values(self) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
        """Return what the numbers stand for: int64 where they are whole, else float64."""
        return {
            name: array if name in self.whole else array.astype(np.float64) * UNIT
            for name, array in self.numbers.items()
        }


def to_fixed_point(values: Mapping[str, torch.Tensor]) -> FixedPoint:
    """Return named numbers [...] in units: whole ones as they are, real ones rounded to the nearest unit.

    Raises:
        ValueError: A number is not finite, above 2^32, or a whole one above 2^62; the sentence names it.
    """
    numbers, whole = {}, set[str]()
    for name, tensor in values.items():
        found = tensor.detach().cpu()
        if not (found.dtype.is_floating_point or found.dtype.is_complex):
            whole.add(name)
            numbers[name] = np.array(found.numpy(), np.int64, order="C")
        else:
            exact = found.to(torch.float64).numpy()
            if not np.isfinite(exact).all():
                raise ValueError(f"the sum {name!r} holds NaN or infinity")
            if exact.size and np.abs(exact).max() > MOST * UNIT:
                raise ValueError(
                    f"the sum {name!r} holds {np.abs(exact).max():.3g}, above 2^32; scale it down"
                )
            numbers[name] = np.array(np.rint(exact / UNIT), np.int64, order="C")
        if above(numbers[name], MOST):
            raise ValueError(f"the sum {name!r} is {_most(name in whole)}")
    return FixedPoint(numbers=numbers, whole=frozenset(whole))


class FixedPointSum:
    """The running sum of named arrays that all have the same names, shapes and units.

    Args:
        bits: The sum fits so many bits, its sign among them.
    """

    def __init__(self, bits: int = BITS) -> None:
        self.total = FixedPoint()
        """What was added so far."""
        self._limit = min(MOST, (1 << (bits - 1)) - 1)
        self._bits = bits

    def add(self, part: FixedPoint) -> None:
        """Add named arrays; nothing is added where they are refused.

        Raises:
            ValueError: Names, shapes or units are others than before, or a number or a sum is too large.
        """
        if self.total.numbers and part.signature != self.total.signature:
            raise ValueError("its sums have other names or shapes than those of other clients")
        new = dict[str, NDArray[np.int64]]()
        for name, array in part.numbers.items():
            if above(array, self._limit):
                raise ValueError(f"the sum {name!r} is {self._too_large(name in part.whole)}")
            new[name] = array + self.total.numbers[name] if self.total.numbers else array
            if above(new[name], self._limit):
                raise ValueError(
                    f"the sum {name!r} over all clients is {self._too_large(name in part.whole)}"
                )
        self.total = FixedPoint(numbers=new, whole=part.whole)

    def _too_large(self, whole: bool) -> str:
        return _most(whole) if self._limit == MOST else f"more than {self._bits} bits hold"


def above(array: NDArray[np.int64], limit: int) -> bool:
    """Return whether a number's magnitude is above a limit; that of -2^63 has no positive counterpart."""
    return bool(array.size) and (int(array.max()) > limit or int(array.min()) < -limit)


def pack(numbers: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Return numbers [...] modulo 2^bits in little-endian bytes [..., bits / 8]."""
    raw = np.ascontiguousarray(numbers, "<i8").view(np.uint8).reshape(*numbers.shape, 8)
    return np.array(raw[..., : bits // 8], order="C")


def unpack(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the numbers [...] from -2^(bits - 1) to 2^(bits - 1) - 1 of bytes [..., bits / 8]."""
    width = raw.shape[-1]
    whole = np.zeros((*raw.shape[:-1], 8), np.uint8)
    # In the upper bytes, so that the shift back carries the sign down.
    whole[..., 8 - width :] = raw
    shift = np.int64(8 * (8 - width))
    return np.array(np.right_shift(whole.view("<i8")[..., 0], shift), np.int64)


def wrapped(numbers: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Return the numbers from -2^(bits - 1) to 2^(bits - 1) - 1 that are the given ones modulo 2^bits."""
    shift = np.int64(BITS - bits)
    return np.right_shift(np.left_shift(numbers, shift), shift)


def _most(whole: bool) -> str:
    return "above 2^62" if whole else "above 2^32"
