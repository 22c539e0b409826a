"""Places, anchors, boxes relative to them, and which anchor is for which object."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from fedvision.models.detection.anchored import shapes
from fedvision.models.detection.geometry import (
    BACKGROUND,
    BETWEEN,
    anchors,
    clipped,
    decoded,
    encoded,
    matched,
    of_boxes,
    places,
)


def boxes(count: int, seed: int, side: float = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side * 0.7
    return torch.cat([corner, corner + 2 + torch.rand(count, 2, generator=generator) * side * 0.3], 1)


def test_places_are_the_middles_of_their_shares() -> None:
    found = places([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 1)], (8, 9))
    assert found.centres.tolist() == [
        [1.5, 2], [4.5, 2], [7.5, 2], [1.5, 6], [4.5, 6], [7.5, 6], [4.5, 4]
    ]  # fmt: skip
    assert found.strides.tolist() == [[3, 4]] * 6 + [[9, 8]]
    assert found.levels.tolist() == [0] * 6 + [1]


def test_anchors_of_a_place_stand_together() -> None:
    found = anchors(places([torch.zeros(1, 1, 1, 2)], (10, 20)), torch.tensor([[1.0, 1.0], [0.4, 2.0]]))
    assert found.tolist() == [[0, 0, 10, 10], [3, -5, 7, 15], [10, 0, 20, 10], [13, -5, 17, 15]]
    sides = shapes((1.0,), (0.25, 1.0))
    assert sides.tolist() == [[8, 2], [4, 4]]


@given(seed=st.integers(0, 99))
def test_boxes_come_back_and_are_torchvisions(seed: int) -> None:
    own, around = boxes(20, seed).double(), boxes(20, seed + 100).double()
    deltas = encoded(own, around)
    assert torch.allclose(decoded(deltas, around), own)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert torch.allclose(deltas, coder.encode_single(own, around))
    assert torch.allclose(decoded(deltas * 9, around), coder.decode_single(deltas * 9, around))


def test_boxes_are_cut_at_the_border() -> None:
    assert clipped(torch.tensor([[-3.0, 2, 30, 99]]), (20, 10)).tolist() == [[0, 2, 10, 20]]


@given(seed=st.integers(0, 60), best=st.booleans())
def test_matching_is_torchvisions(seed: int, best: bool) -> None:
    own, around = boxes(4, seed), boxes(300, seed + 1000)
    padded = torch.cat([own, torch.zeros(2, 4)])[None]
    present = torch.tensor([[True] * 4 + [False] * 2])
    found = matched(padded, present, around, above=0.5, below=0.4, best_of_each=best)
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=best)(box_iou(own, around))
    touched = box_iou(own, around).amax(0) > 0  # torchvision gives what no anchor touches to all of them
    assert torch.equal(found[0][touched], expected[touched])


def test_matching_by_hand() -> None:
    own = torch.tensor([[[0.0, 0, 10, 10], [40, 40, 44, 44], [0, 0, 0, 0]]])
    around = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 22], [0, 0, 10, 30], [39, 39, 49, 49], [70, 70, 80, 80]]
    )
    present = torch.tensor([[True, True, False]])
    found = matched(own, present, around, above=0.5, below=0.4)
    # IoU 1, 10/22, 1/3, 16/100 (the best of its object), 0.
    assert found.tolist() == [[0, BETWEEN, BACKGROUND, 1, BACKGROUND]]
    nothing = matched(own, torch.zeros(1, 3, dtype=torch.bool), around, above=0.5, below=0.4)
    assert nothing.tolist() == [[BACKGROUND] * 5]
    assert of_boxes(torch.tensor([[5, 6, 7]]), found).tolist() == [[5, 5, 5, 6, 5]]


@pytest.mark.parametrize("count", [1, 3])
def test_anchors_may_differ_by_image(count: int) -> None:
    own, around = boxes(6, 1).reshape(2, 3, 4), boxes(2 * count, 2).reshape(2, count, 4)
    present = torch.ones(2, 3, dtype=torch.bool)
    found = matched(own, present, around, above=0.5, below=0.5)
    for place in range(2):
        alone = matched(own[place : place + 1], present[:1], around[place], above=0.5, below=0.5)
        assert torch.equal(found[place], alone[0])
