"""The array form of images' boxes: packed, counted, placed on decoded images, and put back after a move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.data import boxes
from fedvision.data.boxes import AREA, CLASS, COLUMNS, CROWD, HEIGHT, WIDTH, Placement, X, Y

PLAIN = Placement(width=100, height=80)


def box(label: int, *place: float, crowd: bool = False) -> list[float]:
    """Return a box of a place (x, y, width, height) whose object fills half of it."""
    return [label, *place, place[2] * place[3] / 2, crowd]


def rows(*own: list[float]) -> np.ndarray:
    return np.array(own, np.float64).reshape(-1, COLUMNS)


def test_packed_by_hand() -> None:
    place = Placement(width=200, height=160, scale=(0.5, 0.25), shift=(-3.0, 2.0))
    found = boxes.packed([rows(), rows(box(1, 4, 5, 6, 8), box(0, 1, 2, 3, 4, crowd=True))], [PLAIN, place])
    assert found.tolist() == [
        [[0, 1, 1, 0, 0, 100, 80], [0] * 7, [0] * 7],
        [[2, 0.5, 0.25, -3, 2, 200, 160], [1, 4, 5, 6, 8, 24, 0], [0, 1, 2, 3, 4, 6, 1]],
    ]
    assert found.dtype == np.float64
    assert boxes.present(found).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("images", [0, 3])
def test_images_of_nothing_keep_a_place(images: int) -> None:
    found = boxes.packed([rows()] * images, [PLAIN] * images)
    assert found.shape == (images, 2, COLUMNS)
    assert boxes.are_boxes(found)
    assert not boxes.present(found).any()
    assert boxes.class_table(found, 3).tolist() == [[0, 0, 0]] * images


def test_as_many_placements_as_images() -> None:
    with pytest.raises(ValueError, match="zip"):
        boxes.packed([rows(), rows()], [PLAIN])


@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 1, 7), (4, 2, 6), (4, 2, 7, 1)])
def test_other_forms_are_no_boxes(shape: tuple[int, ...]) -> None:
    assert not boxes.are_boxes(np.zeros(shape))
    assert boxes.are_boxes(np.zeros((4, 2, 7)))


def test_counts_of_classes_leave_crowds_and_padding_out() -> None:
    first = rows(box(2, 0, 0, 1, 1), box(0, 0, 0, 1, 1), box(2, 0, 0, 1, 1, crowd=True), box(2, 5, 5, 1, 1))
    found = boxes.class_table(boxes.packed([first, rows(), rows(box(1, 0, 0, 1, 1))], [PLAIN] * 3), 4)
    assert found.tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_placed_by_hand() -> None:
    """Scaled, then shifted, each axis by its own."""
    place = Placement(width=200, height=160, scale=(0.5, 0.25), shift=(-3.0, 2.0))
    given_boxes = boxes.packed([rows(box(0, 10, 20, 4, 8)), rows()], [place, PLAIN])
    corners, present = boxes.placed(torch.from_numpy(given_boxes))
    assert corners[0, 0].tolist() == [2, 7, 4, 9]
    assert corners.dtype == torch.float64
    assert present.tolist() == [[True], [False]]


def drawn(seed: int) -> torch.Tensor:
    """Return the targets of six images with up to five boxes each and placements of their own."""
    rng = np.random.default_rng(seed)
    own, places = [], []
    for _ in range(6):
        one = np.zeros((rng.integers(0, 6), COLUMNS))
        one[:, CLASS], one[:, CROWD] = rng.integers(0, 4, len(one)), rng.random(len(one)) < 0.2
        one[:, X : HEIGHT + 1] = rng.uniform(1, 50, (len(one), 4))
        one[:, AREA] = one[:, WIDTH] * one[:, HEIGHT] * rng.uniform(0.3, 1, len(one))
        own.append(one)
        scale, shift = rng.uniform(0.2, 3, 2), rng.uniform(-5, 5, 2)
        places.append(Placement(width=120, height=90, scale=(scale[0], scale[1]), shift=(shift[0], shift[1])))
    return torch.from_numpy(boxes.packed(own, places))


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_what_is_placed_and_put_back_stays(seed: int) -> None:
    """With all boxes kept, the corners are the same as before; the placement is that of the decoded image."""
    targets = drawn(seed)
    before = targets.clone()
    corners, present = boxes.placed(targets)
    back = boxes.with_corners(targets, corners, present)
    again, still = boxes.placed(back)
    assert still.equal(present)
    torch.testing.assert_close(again[still], corners[present], rtol=1e-12, atol=1e-12)
    assert back[..., 1:, [CLASS, CROWD]].equal(targets[..., 1:, [CLASS, CROWD]])
    sides = back[:, 1:, WIDTH : HEIGHT + 1]
    assert back[:, 1:, AREA].equal(sides.prod(2))
    assert back[:, 0].tolist() == [[n, 1, 1, 0, 0, 120, 90] for n in present.sum(1).tolist()]
    assert targets.equal(before)


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_kept_boxes_come_first_in_their_order(seed: int) -> None:
    targets = drawn(seed)
    corners, present = boxes.placed(targets)
    kept = present & torch.from_numpy(np.random.default_rng(seed + 1).random(present.shape) < 0.5)
    back = boxes.with_corners(targets, corners, kept)
    for image, (own, keep) in enumerate(zip(back, kept, strict=True)):
        number = int(keep.sum())
        assert own[0, 0] == number
        assert own[1 : 1 + number, CLASS].equal(targets[image, 1:, CLASS][keep])
        torch.testing.assert_close(own[1 : 1 + number, [X, Y]], corners[image, keep][:, :2])
        assert not own[1 + number :].any()
    assert np.array_equal(
        boxes.class_table(back.numpy(), 4).sum(1), (kept & (targets[:, 1:, CROWD] == 0)).sum(1)
    )
