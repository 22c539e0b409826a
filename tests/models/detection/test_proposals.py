"""The first stage of Faster R-CNN: what is drawn, and which boxes it proposes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvision.models.detection.geometry import BACKGROUND, BETWEEN
from fedvision.models.detection.proposals import Proposals, draws, sampled


def test_the_lowest_are_drawn_of_objects_first() -> None:
    found = torch.tensor([[0, 0, 1, BACKGROUND, BACKGROUND, BETWEEN, BACKGROUND]])
    keys = torch.tensor([[0.5, 0.1, 0.3, 0.9, 0.2, 0.0, 0.4]])
    objects, background = sampled(found, keys, 4, 0.5)
    assert objects.tolist() == [[False, True, True, False, False, False, False]]
    assert background.tolist() == [[False, False, False, False, True, False, True]]


@given(st.lists(st.sampled_from([0, 3, BACKGROUND, BETWEEN]), min_size=1, max_size=40), st.integers(1, 30))
def test_no_more_is_drawn_than_there_is(found: list[int], number: int) -> None:
    row = torch.tensor([found])
    objects, background = sampled(row, draws((1, len(found)), torch.device("cpu"), False), number, 0.25)
    assert (objects <= (row >= 0)).all()
    assert (background <= (row == BACKGROUND)).all()
    own = min((row >= 0).sum().item(), int(0.25 * number))
    assert objects.sum() == own
    assert background.sum() == min((row == BACKGROUND).sum().item(), number - own)


def test_what_is_drawn_in_measurement_is_the_same_each_time() -> None:
    cpu = torch.device("cpu")
    assert torch.equal(draws((2, 50), cpu, False), draws((2, 50), cpu, False))
    assert len(draws((1, 50), cpu, False).unique()) == 50
    torch.manual_seed(1)
    one = draws((2, 50), cpu, True)
    torch.manual_seed(1)
    assert torch.equal(one, draws((2, 50), cpu, True))
    assert not torch.equal(one, draws((2, 50), cpu, True))


def test_boxes_are_the_best_that_do_not_overlap_a_better_one() -> None:
    around = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [5, 5, 5.4, 9]])
    one = Proposals(
        logits=torch.tensor([[1.0, 2.0, 0.0, 9.0], [-1.0, -2.0, 0.0, 9.0]]),
        deltas=torch.zeros(2, 4, 4),
        around=around,
        size=(28, 40),
    )
    found, there = one.boxes(10)
    assert there.tolist() == [[True, True], [True, True]]
    assert found.tolist() == [
        [[1, 0, 11, 10], [20, 20, 30, 28]],
        [[20, 20, 30, 28], [0, 0, 10, 10]],
    ]
    found, there = one.boxes(1)
    assert found.shape == (2, 1, 4)
