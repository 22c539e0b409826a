"""Classification: every image has one class, and what is counted is which class was taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedvision.data.targets import ONE_CLASS, Targets, one_class
from fedvision.tasks import metrics
from fedvision.tasks.base import Task
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.intervals import Interval, score_intervals
from fedvision.tasks.observed import Observed
from fedvision.tasks.stats import MetricStats
from fedvision.types import MetricFn


class Classification(Task):
    """One class an image: labels int64 [N]."""

    name: ClassVar[str] = "classification"
    targets: ClassVar[str] = ONE_CLASS
    client_metric: ClassVar[str] = "accuracy"
    whole_image: ClassVar[bool] = True
    stacks: ClassVar[bool] = True

    def fits(self, targets: Targets) -> bool:
        """Return whether each image has one class."""
        return one_class(targets)

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        """Return the summed cross-entropy, and true class x C + predicted class of each image."""
        loss = F.cross_entropy(logits, targets, reduction="sum")
        return Observed(loss, targets * num_classes + logits.argmax(1))

    def decide(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each image's class [B], and the softmax [B, C]."""
        return logits.argmax(1), logits.softmax(1)

    def example_targets(self, num_classes: int, image_size: tuple[int, int]) -> torch.Tensor:
        """Return the classes [C]."""
        return torch.arange(num_classes)

    def scores(
        self,
        stats: MetricStats,
        counts: Sequence[int] | NDArray[Any] | None = None,
        extra: Mapping[str, MetricFn] | None = None,
    ) -> dict[str, float]:
        """Return accuracy, balanced accuracy, macro F1, recall of rare classes: ``metrics.scores``."""
        return metrics.scores(ConfusionCounts.of(stats), counts, extra)

    def intervals(
        self, stats: MetricStats, counts: Sequence[int] | NDArray[Any] | None = None
    ) -> dict[str, Interval]:
        """Return those of all of them: ``intervals.score_intervals``."""
        return score_intervals(ConfusionCounts.of(stats), counts)

    def by_class(self, stats: MetricStats) -> dict[str, NDArray[Any]]:
        """Return images, recall, precision and F1 of each class [C]; NaN where no image tells."""
        counts = ConfusionCounts.of(stats)
        return {
            "images": counts.images_of,
            "recall": metrics.recall(counts),
            "precision": metrics.precision(counts),
            "f1": metrics.f1(counts),
        }

    def client_score(self, stats: MetricStats) -> float:
        """Return the accuracy."""
        return metrics.accuracy(ConfusionCounts.of(stats))

    def to_record(self, stats: MetricStats) -> dict[str, Any]:
        """Return the confusion counts."""
        return {"confusion": ConfusionCounts.of(stats).to_record()}
