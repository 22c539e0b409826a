"""Features and class weights as whole numbers: what is exact, how many bits it takes, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvision.algorithms.closed_form import rounding


def test_weights_are_whole_and_grow_as_classes_shrink() -> None:
    counts = np.array([5000, 500, 50, 0])
    assert rounding.class_weights(counts, 0.0).tolist() == [1, 1, 1, 1]
    assert rounding.class_weights(counts, 1.0).tolist() == [8, 80, 800, 40000]
    assert rounding.class_weights(counts, 0.5).tolist() == [8, 25, 80, 566]


def test_sums_of_a_long_tail_take_five_bytes() -> None:
    """Ten classes, 1280 features: what a client sends in all is below 5 MB."""
    counts = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
    bits = rounding.bits_of_products(counts, rounding.class_weights(counts, 1.0))
    assert bits == 40
    numbers = 1280 * 1281 // 2 + 10 * 1280 + 10
    assert numbers * bits // 8 + 8 * (10 + 2 * 1280) + 8 * 7 * 100 < 5_000_000


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=5), balance=st.sampled_from([0, 0.5, 1.0]))
def test_bits_hold_the_largest_sum(counts: list[int], balance: float) -> None:
    numbers = np.array(counts)
    weights = rounding.class_weights(numbers, balance)
    bits = rounding.bits_of_products(numbers, weights)
    most = int((numbers.astype(object) * weights.astype(object)).sum()) * 1023**2
    assert bits == 64 or most < 2 ** (bits - 1)
    assert bits == 8 or bits == 64 or most >= 2 ** (bits - 9)


def test_constants_do_not_lose_a_small_deviation_beside_a_large_mean() -> None:
    features = torch.tensor([[1000.0, 2.0, 7.0], [1000.5, -2.0, 7.0], [1001.0, 0.0, 7.0]])
    values, squares = (part.sum(0).numpy() for part in rounding.on_grid(features))
    found = rounding.constants(3, values, squares)
    wide = features.double()
    torch.testing.assert_close(found["mean"], wide.mean(0), rtol=1e-12, atol=0)
    wanted = wide.std(0, correction=0)
    wanted[2] = 2.0**-12
    torch.testing.assert_close(found["deviation"], wanted, rtol=1e-6, atol=0)


def test_features_that_cannot_be_rounded_are_refused() -> None:
    for odd in (float("nan"), float("inf"), -5000.0):
        with pytest.raises(ValueError, match="NaN, infinity or numbers above 4096"):
            rounding.on_grid(torch.tensor([[odd]]))


def test_features_are_rounded_to_steps_and_cut_off() -> None:
    constants = {
        "mean": torch.tensor([1.0, 0.0], dtype=torch.float64),
        "deviation": torch.tensor([2.0, 2.0**-12], dtype=torch.float64),
    }
    found = rounding.rounded(
        torch.tensor([[1.0, 0.0], [2.0, 1.0], [1.0 - 0.019, -1.0], [30.0, 0.0]]), constants
    )
    assert found.tolist() == [[0, 0], [64, 1023], [-1, -1023], [1023, 0]]
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        rounding.rounded(torch.tensor([[float("nan"), 0.0]]), constants)


def test_a_block_whose_product_may_round_is_refused() -> None:
    steps = torch.full((4, 1), 1023.0, dtype=torch.float64)
    heavy = 2**53 // 1023**2 // 4
    exact = rounding.weighted_products(steps, torch.full((4,), heavy - 1))
    assert int(exact) == 4 * (heavy - 1) * 1023**2
    with pytest.raises(ValueError, match="weigh too much for an exact product"):
        rounding.weighted_products(steps, torch.full((4,), heavy + 1))
    assert rounding.block_size(heavy) <= 4
