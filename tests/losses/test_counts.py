"""Counts: whole images, vacant classes, and every step under vmap."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from fedvision.losses.counts import at_least, images, mixed, occupied

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


def test_mixed_counts_have_the_mixed_prior() -> None:
    federation, own = torch.tensor([600, 300, 100]), torch.tensor([0, 40, 160])
    # 1/4 and 3/4: 0.75 x (0.6, 0.3, 0.1) + 0.25 x (0, 0.2, 0.8), of 0.75 x 1000 + 0.25 x 200 images.
    assert mixed(federation, own, 0.25).tolist() == [360, 220, 220]
    assert mixed(federation, own, 0.25).dtype == torch.int64


@pytest.mark.parametrize("counts", [[7, 0, 13, 80], [999_983, 1, 0, 3]])
def test_a_mixture_ends_in_its_parts(counts: list[int]) -> None:
    federation, own = torch.tensor(counts), torch.tensor([3, 11, 0, 0])
    assert torch.equal(mixed(federation, own, 0.0), federation)
    assert torch.equal(mixed(federation, own, 1.0), own)


def test_a_mixture_with_nothing_is_the_other_part() -> None:
    some, none = torch.tensor([3, 0, 5]), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(mixed(some, none, 0.3), some)
    assert torch.equal(mixed(none, some, 0.3), some)
    assert mixed(none, none, 0.3).tolist() == [0, 0, 0]
    # A noisy sum below 0 is no image.
    assert mixed(torch.tensor([-4, 0, -1]), some, 0.3).tolist() == [3, 0, 5]


def test_a_share_outside_of_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match="local_share must be >= 0 and <= 1"):
        mixed(torch.tensor([1]), torch.tensor([1]), 1.5)
