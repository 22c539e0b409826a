"""A task of another form: a class for each pixel, with a network and images of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.image_counts import PerImage
from fedvision.data.transforms import BatchTransform, Draws
from fedvision.tasks.base import Task, check_tensor
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.metrics import mean_of, ratio
from fedvision.tasks.observed import Observed
from fedvision.tasks.stats import MetricStats
from fedvision.types import LossFn, MetricFn

SIDE, CLASSES = 8, ("ground", "bright", "brighter")


def intersection_over_union(stats: MetricStats) -> NDArray[np.float64]:
    """Return the IoU of each class [C], NaN of one that is nowhere."""
    counts = ConfusionCounts.of(stats)
    right = counts.right_of
    return ratio(right, counts.images_of + counts.predictions_of - right)


class Pixels(Task):
    """Targets int64 [N, H, W], outputs [B, C, H, W]; pixels are counted."""

    name: ClassVar[str] = "pixels"
    targets: ClassVar[str] = "a class for each pixel, int64 [N, H, W]"
    example: ClassVar[str] = "pixel"
    client_metric: ClassVar[str] = "mean_iou"
    per_image: ClassVar[PerImage] = "any number"
    plugins_of: ClassVar[tuple[str, ...]] = ("classification",)

    def fits(self, targets: NDArray[Any]) -> bool:
        return targets.ndim == 3 and targets.dtype == np.int64

    def class_counts(self, targets: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
        return np.bincount(targets.ravel(), minlength=num_classes)

    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = targets.max(axis=(1, 2))
        return found

    def example_targets(self, num_classes: int, image_size: tuple[int, int]) -> torch.Tensor:
        return torch.arange(num_classes)[:, None, None].expand(-1, *image_size)

    def transform(
        self, x: torch.Tensor, targets: torch.Tensor, drawn: Draws, transform: BatchTransform
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return transform.apply(x, drawn), transform.apply_to_map(targets, drawn, fill=0)

    def check_outputs(self, outputs: Any, images: torch.Tensor, num_classes: int) -> str | None:
        shape = (len(images), num_classes, *images.shape[2:])
        return check_tensor(outputs, shape, f"and {num_classes} classes of a pixel")

    def loss(self, criterion: LossFn, num_classes: int) -> LossFn:
        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            pixels = outputs.movedim(1, -1).flatten(0, 2)
            return criterion(pixels, targets.flatten()).view(len(targets), -1).mean(1)

        return loss

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        loss = F.cross_entropy(logits, targets, reduction="sum")
        return Observed(loss, (targets * num_classes + logits.argmax(1)).flatten())

    def scores(
        self,
        stats: MetricStats,
        counts: Sequence[int] | NDArray[Any] | None = None,
        extra: Mapping[str, MetricFn] | None = None,
    ) -> dict[str, float]:
        return {"mean_iou": mean_of(intersection_over_union(stats))}


class Cases(Pixels):
    """With a row an image: its number, its pixels that are right, and all of them."""

    row_width: ClassVar[int] = 3

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        found = super().observe(logits, targets, num_classes)
        right = (logits.argmax(1) == targets).flatten(1).sum(1)
        number = torch.arange(len(targets))
        return found._replace(rows=torch.stack([number, right, torch.full_like(number, SIDE**2)], 1))

    def stats_problem(self, stats: MetricStats, num_classes: int) -> str | None:
        assert stats.rows is not None
        wrong = (np.diff(stats.rows[:, 1:]) < 0).any()
        return "its rows have more right pixels than pixels" if wrong else None

    def scores(
        self,
        stats: MetricStats,
        counts: Sequence[int] | NDArray[Any] | None = None,
        extra: Mapping[str, MetricFn] | None = None,
    ) -> dict[str, float]:
        rows = stats.rows
        known = rows is not None and len(rows)
        worst = float((rows[:, 1] / rows[:, 2]).min()) if known else float("nan")
        last = float(rows[-1, 0]) if known else float("nan")
        first = float(rows[0, 1]) if known else float("nan")
        own = {"worst_image": worst, "last_image": last, "first_right": first}
        return super().scores(stats, counts, extra) | own


class RowLess(Cases):
    """Without the rows that it announces."""

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        return super().observe(logits, targets, num_classes)._replace(rows=None)


class Unordered(Cases):
    """With rows whose images are in no order."""

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        found = super().observe(logits, targets, num_classes)
        assert found.rows is not None
        return found._replace(rows=found.rows.flip(0))


class Narrow(Cases):
    """With rows of two numbers."""

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        found = super().observe(logits, targets, num_classes)
        assert found.rows is not None
        return found._replace(rows=found.rows[:, :2])


class Real(Pixels):
    """With cells that are no whole numbers."""

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        found = super().observe(logits, targets, num_classes)
        return found._replace(cells=found.cells.double())


class Failing(Pixels):
    """With a fault of its own."""

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        raise ZeroDivisionError("division by zero")


class Unmoved(Pixels):
    """Without a word on how targets move."""

    transform = Task.transform


class Scalar(Pixels):
    """With a loss that is one number for the whole batch."""

    def loss(self, criterion: LossFn, num_classes: int) -> LossFn:
        return lambda outputs, targets: F.cross_entropy(outputs, targets)


class Overflowing(Pixels):
    """With counts beyond its tables."""

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        found = super().observe(logits, targets, num_classes)
        return found._replace(cells=found.cells + num_classes**2)


def squares(*, images: int = 60, test: int = 20) -> Dataset:
    """Return dark images with a bright square in some and a brighter one in a few; pixels say their class."""
    rng = np.random.default_rng(0)
    classes = np.zeros((images + test, SIDE, SIDE), np.int64)
    for number, one in enumerate(classes):
        top, left = rng.integers(0, SIDE - 3, 2)
        one[top : top + 3, left : left + 3] = number % 3
    pixels = (80 * classes + rng.integers(0, 40, classes.shape)).astype(np.uint8)[..., None]
    train, held = (
        ImageSet(images=pixels[part], labels=classes[part])
        for part in (slice(images), slice(images, images + test))
    )
    return Dataset(train=train, test=held, classes=CLASSES)


def pointwise(*, num_classes: int, in_channels: int) -> nn.Module:
    """Return a 1x1 convolution, after which no pixel sees another."""
    return nn.Conv2d(in_channels, num_classes, 1)


def whole(*, num_classes: int, in_channels: int) -> nn.Module:
    """Return a network that says nothing of single pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * SIDE * SIDE, num_classes))
