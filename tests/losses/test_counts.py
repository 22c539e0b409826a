"""Counts: whole images, vacant classes, and every step under vmap."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from fedvision.losses.counts import at_least, images, occupied

STACKED = torch.tensor([[4, 0, 9], [0, 0, 0], [7, 7, 7]])


def test_counts_are_whole_images() -> None:
    noisy = torch.tensor([3.4, -2.0, 0.6, 0.4, -0.0])
    assert images(noisy).tolist() == [3, 0, 1, 0, 0]
    assert images(torch.tensor([2**40 + 1])).tolist() == [2**40 + 1]
    assert images(noisy).dtype == torch.float64


def test_a_vacant_class_is_as_rare_as_the_rarest_other() -> None:
    assert occupied(STACKED).tolist() == [[4, 4, 9], [1, 1, 1], [7, 7, 7]]


def test_a_floor_raises_small_counts_alone() -> None:
    assert at_least(torch.tensor([0, 1, 3]), 2.5).tolist() == [2.5, 2.5, 3]


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_floor_must_be_positive(floor: float) -> None:
    with pytest.raises(ValueError, match="floor must be > 0"):
        at_least(torch.tensor([1]), floor)


def test_one_number_is_no_count_per_class() -> None:
    with pytest.raises(ValueError, match=r"counts must be \[C\]"):
        images(torch.tensor(3))


def test_clients_under_vmap_are_as_stacked() -> None:
    assert torch.equal(vmap(occupied)(STACKED), occupied(STACKED))
    assert torch.equal(vmap(lambda n: at_least(n, 0.5))(STACKED), at_least(STACKED, 0.5))


def test_counts_carry_no_gradient() -> None:
    assert not images(torch.tensor([1.0, 2.0], requires_grad=True)).requires_grad
