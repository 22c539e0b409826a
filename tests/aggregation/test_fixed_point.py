"""Sums in fixed point: exact in any order and in few bits, and refused where they would not be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvision.aggregation.fixed_point import (
    MOST,
    UNIT,
    FixedPoint,
    FixedPointSum,
    pack,
    to_fixed_point,
    unpack,
    wrapped,
)


def test_real_numbers_are_rounded_to_the_unit_and_whole_ones_are_not() -> None:
    values = {"a": torch.tensor([1.5, -0.1, 3 * UNIT]), "n": torch.tensor([7, 0]), "one": torch.tensor(2)}
    found = to_fixed_point(values)
    assert found.whole == {"n", "one"}
    assert found.numbers["a"].tolist() == [3 << 29, round(-float(torch.tensor(0.1)) / UNIT), 3]
    assert found.numbers["n"].tolist() == [7, 0]
    assert (found.numbers["one"].shape, int(found.numbers["one"])) == ((), 2)
    back = found.values()
    assert np.abs(back["a"] - values["a"].double().numpy()).max() <= UNIT / 2
    assert (back["n"].tolist(), back["n"].dtype, back["a"].dtype) == ([7, 0], np.int64, np.float64)


def test_whole_numbers_up_to_2_to_the_62_are_exact() -> None:
    large = [2**53 + 1, -(2**62), 2**62 - 1]
    for dtype in (torch.int64, torch.int32, torch.bool):
        tensor = torch.tensor(large if dtype is torch.int64 else [1, 0, 1], dtype=dtype)
        assert to_fixed_point({"n": tensor}).values()["n"].tolist() == tensor.long().tolist()
    for odd in (2**62 + 1, -(2**63)):
        with pytest.raises(ValueError, match=r"the sum 'n' is above 2\^62"):
            to_fixed_point({"n": torch.tensor([0, odd])})


def test_the_sum_has_the_same_bits_in_any_order() -> None:
    rng = np.random.default_rng(0)
    rows = [to_fixed_point({"x": torch.from_numpy(rng.normal(0, 10.0**k, 50))}) for k in range(-6, 6)]
    totals = []
    for order in (range(12), reversed(range(12)), rng.permutation(12)):
        total = FixedPointSum()
        for place in order:
            total.add(rows[place])
        totals.append(total.total.numbers["x"])
    assert np.array_equal(totals[0], totals[1])
    assert np.array_equal(totals[0], totals[2])
    assert np.array_equal(totals[0], np.sum([row.numbers["x"] for row in rows], axis=0))


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "NaN or infinity"), (2.0**33, "above 2\\^32; scale it down")]
)
def test_what_has_no_whole_number_is_refused(value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"the sum 'x' holds {message}" if value != value else message):
        to_fixed_point({"x": torch.tensor([0.0, value], dtype=torch.float64)})


def test_a_sum_that_would_overflow_is_refused_and_stays() -> None:
    total, most = FixedPointSum(), MOST * UNIT
    large = to_fixed_point({"x": torch.tensor([0.75 * most], dtype=torch.float64)})
    total.add(large)
    with pytest.raises(ValueError, match="the sum 'x' over all clients is above 2\\^32"):
        total.add(large)
    for odd in (2**62 + 1, -(2**63)):
        with pytest.raises(ValueError, match="is above 2\\^32"):
            total.add(FixedPoint(numbers={"x": np.array([odd], np.int64)}))
    with pytest.raises(ValueError, match="other names or shapes"):
        total.add(FixedPoint(numbers={"x": np.zeros(2, np.int64)}))
    with pytest.raises(ValueError, match="other names or shapes"):
        total.add(FixedPoint(numbers={"x": np.zeros(1, np.int64)}, whole=frozenset("x")))
    assert total.total.values()["x"].tolist() == [0.75 * most]


def test_a_total_of_more_bits_than_the_query_allows_is_refused() -> None:
    total, part = FixedPointSum(16), FixedPoint(numbers={"n": np.array([20_000], np.int64)})
    total.add(part)
    with pytest.raises(ValueError, match="the sum 'n' over all clients is more than 16 bits hold"):
        total.add(part)
    assert total.total.numbers["n"].tolist() == [20_000]
    with pytest.raises(ValueError, match="the sum 'n' is more than 16 bits hold"):
        total.add(FixedPoint(numbers={"n": np.array([-(2**15)], np.int64)}))


@pytest.mark.parametrize("bits", [8, 40, 48, 56, 64])
def test_packed_numbers_come_back_at_both_ends(bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    numbers = np.array([[0, 1, -1], [most, -most, -most - 1]], np.int64)
    raw = pack(numbers, bits)
    assert (raw.shape, raw.dtype) == ((2, 3, bits // 8), np.uint8)
    assert np.array_equal(unpack(raw), numbers)
    assert np.array_equal(wrapped(numbers, bits), numbers)


def test_bytes_are_little_endian() -> None:
    assert pack(np.array([-2, 258], np.int64), 24).tolist() == [[254, 255, 255], [2, 1, 0]]


@given(
    bits=st.sampled_from([16, 40, 48, 64]),
    clients=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    masked=st.booleans(),
)
def test_any_split_over_clients_has_the_same_total(bits: int, clients: int, seed: int, masked: bool) -> None:
    """Summands may wrap around, as masked ones do; the total fits and does not."""
    rng = np.random.default_rng(seed)
    total = rng.integers(-(2 ** (min(bits, 62) - 1)), 2 ** (min(bits, 62) - 1), 5, np.int64)
    parts = rng.integers(-(2**62), 2**62, (clients, 5), np.int64)
    with np.errstate(over="ignore"):
        parts[0] += total - parts.sum(0)
    if masked:
        for one in range(clients):
            mask = rng.integers(-(2**63), 2**63, 5, np.int64)
            parts[one] += mask
            parts[(one + 1) % clients] -= mask
    received = [unpack(pack(part, bits)) for part in parts]
    assert np.array_equal(wrapped(np.sum(received, axis=0), bits), total)
