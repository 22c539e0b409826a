"""Segmentation as a task: what is counted of pixels, what of images, and the loss of single pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score, jaccard_score
from torch.nn import functional as F

from fedvision import registry
from fedvision.config import TransformConfig
from fedvision.data.transforms import prepare
from fedvision.errors import PluginError
from fedvision.tasks import pixels
from fedvision.tasks.base import build_task
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.segmentation import Segmentation, per_pixel
from fedvision.tasks.stats import MetricStats
from fedvision.types import PluginSpec

TASK = Segmentation()


def counted(masks: NDArray[Any], logits: torch.Tensor, task: Segmentation = TASK) -> MetricStats:
    found = task.observe(logits, torch.from_numpy(masks), logits.shape[1])
    shape = task.stats_shape(logits.shape[1])
    assert found.rows is not None
    return MetricStats.from_cells(found.cells.numpy(), shape, found.rows.numpy())


def random(seed: int, images: int = 4, classes: int = 4) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """Return masks of classes that are not all there, some pixels ignored, and logits."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, rng.integers(1, classes + 1), (images, 5, 4)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.2] = 255
    logits = rng.normal(size=(images, classes, 5, 4)).astype(np.float32)
    logits[:, rng.integers(0, classes)] -= 9
    return masks, torch.from_numpy(logits)


MASKS = np.array([[[0, 0], [1, 255]], [[0, 1], [1, 1]]], np.uint8)
NAMED = np.array([[[0, 1], [1, 1]], [[0, 0], [1, 2]]])
LOGITS = 9 * F.one_hot(torch.from_numpy(NAMED), 4).movedim(-1, 1).float()


def test_by_hand() -> None:
    """Class 0: TP 2, FP 1, FN 1; class 1: TP 2, FP 1, FN 2; class 2: FP 1; class 3 is nowhere."""
    stats = counted(MASKS, LOGITS)
    assert stats.examples == 7
    found = TASK.by_class(stats)
    assert found["pixels"].tolist() == [3, 4, 0, 0]
    assert found["predicted_pixels"].tolist() == [3, 3, 1, 0]
    assert found["iou"].tolist()[:3] == [2 / 4, 2 / 5, 0]
    assert found["dice"].tolist()[:3] == [4 / 6, 4 / 7, 0]
    assert np.isnan(found["iou"][3])
    assert np.isnan(found["dice"][3])
    # In the first image class 0 has Dice 2/3 and class 1 2/3, in the second 2/3, 1/2 and class 2 0.
    assert found["case_dice"].tolist()[:3] == pytest.approx([2 / 3, (2 / 3 + 2 / 4) / 2, 0])
    scores = TASK.scores(stats, [30, 20, 10, 5])
    assert scores["mean_iou"] == pytest.approx((1 / 2 + 2 / 5) / 3)
    assert scores["mean_dice"] == pytest.approx((2 / 3 + 4 / 7) / 3)
    assert scores["pixel_accuracy"] == pytest.approx(4 / 7)
    assert (scores["head"], scores["medium"]) == pytest.approx((1 / 2, (2 / 5 + 0) / 2))
    assert np.isnan(scores["tail"])
    assert "micro_dice" not in scores
    without = Segmentation(background=0)
    scores = without.scores(stats)
    assert scores["mean_iou"] == without.client_score(stats) == pytest.approx((2 / 5 + 0) / 2)
    assert scores["micro_dice"] == pytest.approx(2 * 2 / (4 + 4))


def test_the_loss_is_of_pixels_with_a_class() -> None:
    masks, logits = random(3)
    found = TASK.observe(logits, torch.from_numpy(masks), 4)
    known = torch.from_numpy(masks) != 255
    each = F.cross_entropy(
        logits.movedim(1, -1)[known], torch.from_numpy(masks).long()[known], reduction="sum"
    )
    torch.testing.assert_close(found.loss, each)


@pytest.mark.slow
@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 3))
def test_they_are_those_of_scikit_learn_whatever_the_parts(seed: int, cut: int) -> None:
    masks, logits = random(seed)
    stats = MetricStats.total([counted(masks[part], logits[part]) for part in (slice(cut), slice(cut, None))])
    whole = counted(masks, logits)
    assert np.array_equal(stats.tables(), whole.tables())
    assert stats.rows is not None
    assert whole.rows is not None
    assert np.array_equal(stats.rows, whole.rows)
    known = masks != 255
    true, named = masks[known], logits.argmax(1).numpy()[known]
    there = sorted(set(true.tolist()) | set(named.tolist()))
    found = TASK.by_class(stats)
    for key, scorer in (("iou", jaccard_score), ("dice", f1_score)):
        wanted = scorer(true, named, labels=there, average=None, zero_division=0)
        np.testing.assert_allclose(found[key][there], wanted, atol=1e-9)
        assert TASK.scores(stats)[f"mean_{key}"] == pytest.approx(wanted.mean(), abs=1e-9)
        assert np.isnan(np.delete(found[key], there)).all()
    micro = f1_score(true, named, labels=[c for c in there if c], average="micro", zero_division=0)
    if any(there):
        assert Segmentation(background=0).scores(stats)["micro_dice"] == pytest.approx(micro, abs=1e-9)
    assert pixels.rows_problem(ConfusionCounts.of(stats)) is None


@pytest.mark.slow
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_case_dice_is_the_mean_over_images_of_scikit_learns(seed: int) -> None:
    masks, logits = random(seed)
    each: dict[int, list[float]] = {}
    for mask, named in zip(masks, logits.argmax(1).numpy(), strict=True):
        true, guess = mask[mask != 255], named[mask != 255]
        for c in set(true.tolist()) | set(guess.tolist()):
            each.setdefault(c, []).append(f1_score(true == c, guess == c))
    found = TASK.by_class(counted(masks, logits))["case_dice"]
    for c in range(4):
        assert found[c] == pytest.approx(np.mean(each[c]), abs=1e-9) if c in each else np.isnan(found[c])


def test_of_nothing_all_is_nan_and_no_warning() -> None:
    for stats in (
        MetricStats.empty(TASK.stats_shape(3)),
        counted(np.full((2, 3, 3), 255, np.uint8), torch.zeros(2, 3, 3, 3)),
    ):
        assert stats.examples == 0
        assert all(np.isnan(value) for value in Segmentation(background=0).scores(stats, [5, 3, 0]).values())


def test_behind_masks_there_is_no_case_dice() -> None:
    masked = MetricStats.from_tables(counted(MASKS, LOGITS).tables(), masked=True)
    scores = TASK.scores(masked)
    assert np.isnan(scores["case_dice"])
    assert scores["mean_iou"] == pytest.approx(0.3)
    assert TASK.stats_problem(masked, 4) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ((0, 1, 9), "no class of 4"),
        ((0, 2, -1), "below 0"),
        ((1, 1, 0), "twice, or out of order"),
        ((0, 2, 3), "more right pixels than pixels"),
        ((0, 3, 3), "do not add up"),
        ((2, 4, 2), "do not add up"),
    ],
)
def test_rows_that_cannot_be_are_refused(change: tuple[int, int, int], problem: str) -> None:
    stats = counted(MASKS, LOGITS)
    assert stats.rows is not None
    assert TASK.stats_problem(stats, 4) is None
    row, column, value = change
    stats.rows[row, column] = value
    assert problem in (TASK.stats_problem(stats, 4) or "")


LOSSES = sorted(name for name, one in registry.BUILTINS["loss"].items() if "classification" in one.tasks)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_classification_is_the_mean_over_the_pixels_of_an_image(name: str) -> None:
    masks, logits = random(1)
    masks[2] = 255
    criterion = registry.build(
        "loss", PluginSpec(use=name), counts=torch.tensor([90, 9, 0, 3]), round=1, rounds=2
    )
    logits.requires_grad_()
    found = TASK.loss(criterion, 4)(logits, torch.from_numpy(masks))
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad.movedim(1, -1)[torch.from_numpy(masks) == 255].any()
    for image, mask, loss in zip(logits.detach(), torch.from_numpy(masks), found.detach(), strict=True):
        known = mask != 255
        each = criterion(image.movedim(0, -1)[known], mask[known].long())
        torch.testing.assert_close(loss, each.mean() if known.any() else torch.tensor(0.0))


def test_masks_move_with_the_image_and_what_comes_in_is_ignored() -> None:
    transform = prepare(TransformConfig(flip=True, crop=2, cutout=3), 1)
    masks = torch.randint(0, 9, (20, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    drawn = transform.draw(20, (8, 8), torch.Generator().manual_seed(1))
    x, moved = TASK.transform(1.0 + masks[:, None].float(), masks, drawn, transform)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved == 255, x[:, 0] == 0)
    assert torch.equal(moved[moved != 255].float() + 1, x[:, 0][moved != 255])
    assert (moved == 255).any()


def test_a_batch_may_hold_nothing_but_ignored_pixels() -> None:
    loss = per_pixel(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    masks = torch.full((2, 3, 3), 255, dtype=torch.uint8)
    assert loss(torch.randn(2, 4, 3, 3), masks).tolist() == [0, 0]


def test_background_is_a_number() -> None:
    assert build_task(PluginSpec(use="segmentation", args={"background": 2})).background == 2  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="background must be >= 0"):
        build_task(PluginSpec(use="segmentation", args={"background": -1}))
