"""Which boxes become detections."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from fedvision.models.detection.outputs import Settings
from fedvision.models.detection.selection import selected


def test_the_best_of_overlapping_boxes_of_a_class_stays() -> None:
    corners = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 0, 5]]])
    scores = torch.tensor([[[0.9, 0.0], [0.8, 0.7], [0.005, 0.3], [0.99, 0.0]]])
    found = selected(corners, scores, (32, 25), Settings())
    assert found.counts.tolist() == [3]
    assert found.classes.tolist() == [[0, 1, 1]]
    assert torch.allclose(found.scores, torch.tensor([[0.9, 0.7, 0.3]]))
    assert found.corners.tolist() == [[[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 25, 30]]]


def test_each_class_may_have_boxes_of_its_own() -> None:
    corners = torch.tensor([[[[0.0, 0, 4, 4], [5, 5, 9, 9]]]])
    found = selected(corners, torch.tensor([[[0.5, 0.6]]]), (10, 10), Settings())
    assert found.corners.tolist() == [[[5, 5, 9, 9], [0, 0, 4, 4]]]


@given(seed=st.integers(0, 50))
def test_detections_fall_in_score_lie_in_the_image_and_do_not_overlap(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 80, 4, generator=generator) * 60 - 5
    scores = torch.rand(2, 80, 3, generator=generator)
    settings = Settings(score_threshold=0.2, nms_threshold=0.4, candidates=150, most=20)
    found = selected(corners, scores, (50, 40), settings)
    for place in range(2):
        count = int(found.counts[place])
        assert count <= 20
        assert (found.scores[place, :count].diff() <= 0).all()
        assert (found.scores[place, :count] > 0.2).all()
        own, classes = found.corners[place, :count], found.classes[place, :count]
        assert (own >= 0).all()
        assert (own <= torch.tensor([40, 50, 40, 50])).all()
        overlap = box_iou(own, own).fill_diagonal_(0)
        assert (overlap[classes[:, None] == classes] <= 0.4).all()
        assert (found.scores[place, count:] == 0).all()
    alone = selected(corners[1:], scores[1:], (50, 40), settings)
    assert torch.equal(alone.scores[0], found.scores[1, : alone.scores.shape[1]])


def test_nothing_found_is_nothing() -> None:
    found = selected(torch.zeros(2, 3, 4), torch.zeros(2, 3, 2), (8, 8), Settings())
    assert found.counts.tolist() == [0, 0]
