"""Losses of whole masks: values by hand, what is ignored, what is absent, and that all stays finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fedvision import registry
from fedvision.errors import PluginError
from fedvision.losses import segmentation
from fedvision.losses.segmentation import takes_masks
from fedvision.types import LossFn, PluginSpec

NAMES = sorted(name for name, one in registry.BUILTINS["loss"].items() if "segmentation" in one.tasks)
COUNTS = [[1000, 10, 1], [40, 0, 3], [0, 0, 0], [5_000_000, 1, 0]]


def build(name: str, counts: Any = (9, 5, 2), **args: Any) -> LossFn:
    loss: LossFn = registry.build("loss", PluginSpec(use=name, args=args), counts=torch.tensor(counts))
    return loss


def sure(masks: torch.Tensor, classes: int, logit: float = 40.0) -> torch.Tensor:
    """Return logits [B, C, H, W] that name each pixel's class with certainty."""
    return logit * F.one_hot(masks.long().clamp(max=classes - 1), classes).movedim(-1, 1).float()


def random(seed: int = 0, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, 5, 4, generator=generator)
    masks = torch.randint(0, 3, (2, 5, 4), generator=generator).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < ignored] = 255
    return logits, masks


def test_by_hand() -> None:
    """Two classes, four pixels, one ignored; p of class 1 is 0.5, 0.8 and 0.2 at those of class 1, 1, 0."""
    p = torch.tensor([0.5, 0.8, 0.2, 0.9])
    logits = torch.stack([(1 - p).log(), p.log()]).view(1, 2, 2, 2)
    masks = torch.tensor([[[1, 1], [0, 255]]], dtype=torch.uint8)
    s = 0.5
    # Class 1: TP = 1.3, FP = 0.2, FN = 0.7, sum p^2 = 0.93; class 0: TP = 0.8, FP = 0.7, FN = 0.2, sum 0.93.
    dice = [1 - (2 * 0.8 + s) / (0.93 + 1 + s), 1 - (2 * 1.3 + s) / (0.93 + 2 + s)]
    index = [(tp + s) / (tp + 0.3 * fp + 0.7 * fn + s) for tp, fp, fn in ((0.8, 0.7, 0.2), (1.3, 0.2, 0.7))]
    entropy = -(math.log(0.5) + math.log(0.8) + math.log(0.8)) / 3
    wanted = {
        "dice": sum(dice) / 2,
        "tversky": 1 - sum(index) / 2,
        "focal-tversky": sum((1 - one) ** 0.75 for one in index) / 2,
    }
    assert set(wanted) == set(NAMES)
    for name, value in wanted.items():
        assert build(name, [3, 3], smooth=s)(logits, masks).item() == pytest.approx(value, abs=1e-6)
        added = build(name, [3, 3], smooth=s, cross_entropy=2.0)(logits, masks).item()
        assert added == pytest.approx(value + 2 * entropy, abs=1e-5)
    weighted = build("tversky", [300, 100], smooth=s, scheme="inverse")(logits, masks).item()
    assert weighted == pytest.approx(1 - (index[0] + 3 * index[1]) / 4, abs=1e-6)


def test_tversky_of_halves_is_dice_without_squares_and_focal_of_one_is_tversky() -> None:
    logits, masks = random()
    sums = segmentation.sums_of(logits, masks)
    soft = 1 - (2 * sums.both + 2) / (sums.predicted + sums.true + 2)
    found = build("tversky", alpha=0.5, beta=0.5, smooth=1.0)(logits, masks)
    torch.testing.assert_close(found, soft.mean(1))
    torch.testing.assert_close(
        build("focal-tversky", gamma=1.0)(logits, masks), build("tversky")(logits, masks)
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_ignored_has_no_part_in_value_and_gradient(name: str) -> None:
    logits, masks = random()
    loss = build(name, cross_entropy=0.5)
    first = logits.clone().requires_grad_()
    value = loss(first, masks)
    value.sum().backward()
    other = torch.where((masks == 255)[:, None], 9 * torch.randn(logits.shape), logits)
    torch.testing.assert_close(loss(other, masks), value.detach())
    assert first.grad is not None
    assert not first.grad.movedim(1, -1)[masks == 255].any()
    assert first.grad.movedim(1, -1)[masks != 255].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_costs_nothing_and_its_opposite_much(name: str) -> None:
    _, masks = random(ignored=0.0)
    loss = build(name)
    assert loss(sure(masks, 3), masks).max() < 1e-3
    assert loss(sure((masks + 1) % 3, 3), masks).min() > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_the_image_lacks(name: str) -> None:
    """It costs what is predicted of it, and nothing where ``absent`` leaves it out."""
    masks = torch.zeros(1, 4, 4, dtype=torch.uint8)
    right, wrong = sure(masks, 3), sure(masks, 3)
    wrong[:, 2, 0] = 41.0
    assert build(name)(right, masks).item() == pytest.approx(0, abs=1e-3)
    assert build(name)(wrong, masks).item() > build(name)(right, masks).item() + 0.1
    only = build(name, absent=False)(wrong, masks).item()
    alone = build(name, [16], absent=True)
    assert 0 < only < 1
    assert takes_masks(alone)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_all_stays_finite(name: str, counts: list[int]) -> None:
    for scheme in ("none", "inverse", "effective-number"):
        loss = build(name, counts, scheme=scheme, cross_entropy=1.0)
        for scale in (0.0, 1.0, 1e4):
            logits, masks = random()
            masks[1] = 255  # an image of which nothing is known
            logits = (scale * logits).requires_grad_()
            value = loss(logits, masks)
            value.sum().backward()
            assert value.shape == (2,)
            assert value.isfinite().all()
            assert logits.grad is not None
            assert logits.grad.isfinite().all()
            right = sure(masks, 3, 1e4).requires_grad_()
            loss(right, masks).sum().backward()
            assert right.grad is not None
            assert right.grad.isfinite().all()


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(NAMES), absent=st.booleans())
def test_of_any_image_it_is_between_0_and_1_and_an_image_stands_for_itself(
    seed: int, name: str, absent: bool
) -> None:
    logits, masks = random(seed)
    loss = build(name, absent=absent, scheme="inverse")
    both = loss(logits, masks)
    assert ((both >= 0) & (both <= 1)).all()
    torch.testing.assert_close(both[1:], loss(logits[1:], masks[1:]))


def test_half_precision_is_computed_in_float32() -> None:
    logits, masks = random()
    half = logits.to(torch.bfloat16)
    found = build("dice")(half, masks)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, build("dice")(half.float(), masks))


def test_masks_of_another_size_are_refused() -> None:
    logits, masks = random()
    with pytest.raises(ValueError, match=r"masks must be \[2, 5, 4\] as the logits' pixels, not \[2, 5, 3\]"):
        build("dice")(logits, masks[..., :3])


@pytest.mark.parametrize(
    ("name", "args", "problem"),
    [
        ("dice", {"smooth": 0.0}, "smooth must be > 0"),
        ("dice", {"cross_entropy": -1.0}, "cross_entropy must be >= 0"),
        ("tversky", {"alpha": -0.1}, "alpha must be >= 0"),
        ("focal-tversky", {"gamma": 0.0}, "gamma must be > 0"),
        ("dice", {"scheme": "rare"}, "scheme must be one of none"),
    ],
)
def test_arguments_out_of_range(name: str, args: dict[str, Any], problem: str) -> None:
    with pytest.raises(PluginError, match=problem):
        build(name, **args)
