"""Classification: every image has one class, and what is counted is which class was taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedvision.tasks import metrics
from fedvision.tasks.base import Task
from fedvision.tasks.confusion import ConfusionCounts, square
from fedvision.tasks.stats import MetricStats, Shape
from fedvision.types import MetricFn


class Classification(Task):
    """One class an image: labels int64 [N]."""

    name: ClassVar[str] = "classification"
    client_metric: ClassVar[str] = "accuracy"
    class_axis: ClassVar[int] = 1

    def stats_shape(self, num_classes: int) -> Shape:
        """Return the shape of a confusion matrix."""
        return square(num_classes)

    def observe(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed cross-entropy, and true class x C + predicted class of each image."""
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return loss, labels * logits.shape[1] + logits.argmax(1)

    def only(self, num_classes: int) -> torch.Tensor:
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

    def client_score(self, stats: MetricStats) -> float:
        """Return the accuracy."""
        return metrics.accuracy(ConfusionCounts.of(stats))

    def to_record(self, stats: MetricStats) -> dict[str, Any]:
        """Return the confusion counts."""
        return {"confusion": ConfusionCounts.of(stats).to_record()}
