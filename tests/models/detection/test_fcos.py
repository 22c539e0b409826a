"""Which object a place of FCOS is for, and what its loss is."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from fedvision.losses.detection import form
from fedvision.losses.weighting import cross_entropy
from fedvision.models.detection.fcos import FcosOutput, assigned
from fedvision.models.detection.geometry import BACKGROUND, places
from fedvision.models.detection.outputs import Settings, Truth

PLACES = places([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], (32, 32))  # strides 4 and 8


def truth(*corners: list[float], absent: int = 0) -> Truth:
    own = torch.tensor([[*corners, *[[0.0] * 4] * absent]], dtype=torch.float32)
    present = torch.tensor([[True] * len(corners) + [False] * absent])
    return Truth(own, torch.arange(own.shape[1])[None], present)


def where(found: torch.Tensor, number: int) -> list[list[float]]:
    return PLACES.centres[found[0] == number].tolist()


def test_a_place_near_the_centre_of_a_small_object_is_for_it() -> None:
    found = assigned(truth([4, 4, 12, 12], absent=2), PLACES)
    # Centres within 6 pixels of (8, 8) and inside: 6 and 10 each way on the fine map; none of the coarse one,
    # of which the farthest border would have to be 32 strides away at least.
    assert where(found, 0) == [[6, 6], [10, 6], [6, 10], [10, 10]]
    assert (found == BACKGROUND).sum() == 80 - 4


def test_an_object_with_far_borders_is_for_the_coarse_map() -> None:
    found = assigned(truth([0, 0, 32, 32]), PLACES)
    # From places of the fine map within 6 pixels of (16, 16) the farthest border is 18 to 22 pixels away,
    # which is more than its 16 but not more than 32; the coarse map begins at 32.
    fine = PLACES.levels[found[0] >= 0]
    assert set(fine.tolist()) == {0}
    wide = places([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], (128, 128))  # strides 16 and 32
    found = assigned(truth([0, 0, 128, 128]), wide)
    assert set(wide.levels[found[0] >= 0].tolist()) == {0}
    # No object falls between maps of strides that are far apart: 17 pixels are 17 strides of the fine one.
    apart = places([torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 4, 4)], (32, 32))  # strides 1 and 8
    found = assigned(truth([0, 0, 32, 32]), apart)
    assert set(apart.levels[found[0] >= 0].tolist()) == {0}
    middle = places([torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 8, 8)], (32, 32))  # strides 1 and 4
    found = assigned(truth([0, 0, 32, 32]), middle)
    assert set(middle.levels[found[0] >= 0].tolist()) == {1}


def test_of_two_objects_the_smaller_one_has_a_place() -> None:
    found = assigned(truth([2, 2, 14, 14], [4, 4, 12, 12]), PLACES)
    assert where(found, 1) == [[6, 6], [10, 6], [6, 10], [10, 10]]
    # The larger one has what lies outside the smaller: nothing, as its places are those.
    assert where(found, 0) == []
    assert where(assigned(truth([2, 2, 14, 14]), PLACES), 0) == [[6, 6], [10, 6], [6, 10], [10, 10]]


def test_the_loss_by_hand() -> None:
    own = truth([4, 4, 12, 12])
    output = FcosOutput(
        logits=torch.full((1, 80, 2), -2.0),
        exponents=torch.zeros(1, 80, 4),  # one stride to each border
        centreness=torch.full((1, 80), 0.5),
        places=PLACES,
        size=(32, 32),
        settings=Settings(),
    )
    found = assigned(own, PLACES)[0] >= 0
    low, high = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    classes = (80 * 2 - 4) * low + 4 * high
    centres = PLACES.centres[found]
    predicted = torch.cat([centres - 4, centres + 4], 1)
    giou = generalized_box_iou(predicted, torch.tensor([[4.0, 4, 12, 12]]))[:, 0]
    # From (6, 6) the borders are 2 and 6 pixels away each way: sqrt(1/3 1/3).
    central = F.binary_cross_entropy_with_logits(torch.tensor(0.5), torch.tensor(1 / 3)).item()
    expected = (classes + (1 - giou).sum().item() + 4 * central) / 4
    plain = form(cross_entropy(torch.ones(2)), "sigmoid")
    assert output.losses(own, plain).tolist() == pytest.approx([expected], rel=1e-5)


def test_an_image_of_nothing_has_the_loss_of_its_background() -> None:
    nothing = truth(absent=1)
    output = FcosOutput(
        logits=torch.zeros(1, 80, 2, requires_grad=True),
        exponents=torch.zeros(1, 80, 4, requires_grad=True),
        centreness=torch.zeros(1, 80, requires_grad=True),
        places=PLACES,
        size=(32, 32),
        settings=Settings(),
    )
    losses = output.losses(nothing, form(cross_entropy(torch.ones(2)), "sigmoid"))
    assert losses.tolist() == pytest.approx([160 * math.log(2)])
    losses.sum().backward()
    assert output.logits.grad is not None
    assert output.logits.grad.isfinite().all()


def test_a_detection_is_scored_by_class_and_centreness() -> None:
    logits = torch.full((1, 80, 2), -20.0)
    logits[0, 9, 1] = 1.0
    output = FcosOutput(
        logits=logits,
        exponents=torch.log(torch.tensor([0.5, 1.0, 1.5, 2.0])).expand(1, 80, 4),
        centreness=torch.full((1, 80), -1.0),
        places=PLACES,
        size=(32, 32),
        settings=Settings(score_threshold=0.1),
    )
    found = output.detections()
    assert found.counts.tolist() == [1]
    assert found.classes[0, 0] == 1
    score = math.sqrt(torch.tensor(1.0).sigmoid() * torch.tensor(-1.0).sigmoid())
    assert found.scores[0, 0].item() == pytest.approx(score)
    assert found.corners[0, 0].tolist() == pytest.approx([4, 2, 12, 14])  # the place at (6, 6)
