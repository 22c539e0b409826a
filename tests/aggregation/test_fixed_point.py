"""Sums in fixed point: exact in any order, and refused where they would not be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvision.aggregation.fixed_point import (
    MOST,
    UNIT,
    FixedPointSum,
    from_fixed_point,
    to_fixed_point,
)


def test_numbers_are_rounded_to_the_unit_and_back() -> None:
    values = {"a": torch.tensor([1.5, -0.1, 3 * UNIT]), "n": torch.tensor([7, 0]), "one": torch.tensor(2)}
    numbers = to_fixed_point(values)
    assert numbers["a"].tolist() == [3 << 29, round(-float(torch.tensor(0.1)) / UNIT), 3]
    assert numbers["n"].tolist() == [7 << 30, 0]
    assert (numbers["one"].shape, int(numbers["one"])) == ((), 2 << 30)
    back = from_fixed_point(numbers)
    assert np.abs(back["a"] - values["a"].double().numpy()).max() <= UNIT / 2
    assert back["n"].tolist() == [7.0, 0.0]


def test_the_sum_has_the_same_bits_in_any_order() -> None:
    rng = np.random.default_rng(0)
    rows = [to_fixed_point({"x": torch.from_numpy(rng.normal(0, 10.0**k, 50))}) for k in range(-6, 6)]
    totals = []
    for order in (range(12), reversed(range(12)), rng.permutation(12)):
        total = FixedPointSum()
        for place in order:
            total.add(rows[place])
        totals.append(total.total["x"])
    assert np.array_equal(totals[0], totals[1])
    assert np.array_equal(totals[0], totals[2])
    assert np.array_equal(totals[0], np.sum([row["x"] for row in rows], axis=0))


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "NaN or infinity"), (2 * MOST, "above 2\\^32; scale it down")]
)
def test_what_has_no_whole_number_is_refused(value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"the sum 'x' holds {message}" if value != value else message):
        to_fixed_point({"x": torch.tensor([0.0, value], dtype=torch.float64)})


def test_a_sum_that_would_overflow_is_refused_and_stays() -> None:
    total = FixedPointSum()
    large = to_fixed_point({"x": torch.tensor([0.75 * MOST], dtype=torch.float64)})
    total.add(large)
    with pytest.raises(ValueError, match="the sum 'x' over all clients is above 2\\^32"):
        total.add(large)
    with pytest.raises(ValueError, match="is above 2\\^32"):
        total.add({"x": np.array([2**62 + 1], np.int64)})
    with pytest.raises(ValueError, match="other names or shapes"):
        total.add({"x": np.zeros(2, np.int64)})
    assert from_fixed_point(total.total)["x"].tolist() == [0.75 * MOST]
