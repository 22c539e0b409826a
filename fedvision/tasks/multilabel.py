"""Multi-label classification: an image has any number of L labels, each with a score of its own.

What is counted is, for each label, how many images with and without it got which score: the logits, in the
bins of ``score_bins``. So true and false positives at probability 1/2, which is logit 0, are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedvision.data.class_frequency_groups import tail_groups
from fedvision.data.image_counts import PerImage
from fedvision.data.targets import SEVERAL, Targets, several
from fedvision.tasks.base import Task
from fedvision.tasks.metrics import mean_of, own_metric, ratio
from fedvision.tasks.observed import Observed
from fedvision.tasks.score_bins import BINS, Floats, area_under_roc, average_precision, bin_of
from fedvision.tasks.stats import MetricStats, Shape
from fedvision.types import MetricFn


class ScoreHistograms(MetricStats):
    """Images by label, by whether they have it (row 1), and by score: tables [L, 2, 1024]."""

    @property
    def positives(self) -> NDArray[np.int64]:
        """Images that have each label [L]."""
        return self.tables()[:, 1].sum(axis=1)  # type: ignore[no-any-return]

    def decisions(self) -> dict[str, NDArray[np.int64]]:
        """Return true positives, false positives and false negatives of each label [L] at probability 1/2."""
        high = self.tables()[:, :, BINS // 2 :].sum(axis=2)
        return {
            "true_positives": high[:, 1],
            "false_positives": high[:, 0],
            "false_negatives": self.positives - high[:, 1],
        }

    def by_label(self) -> dict[str, Floats]:
        """Return precision, recall, F1 at probability 1/2, AP and AUROC of each label [L].

        NaN where undefined: AP, AUROC, recall and F1 of a label without images, AUROC also of one that
        all have. Precision of a label that is never predicted is 0 where images have it, else NaN.
        """
        tables = self.tables()
        found = self.decisions()
        right, false, missed = found.values()
        named, positives = right + false, self.positives
        precision = np.where((named == 0) & (positives > 0), 0.0, ratio(right, named))
        return {
            "precision": precision,
            "recall": ratio(right, positives),
            "f1": np.where(positives > 0, ratio(2 * right, 2 * right + false + missed), np.nan),
            "ap": average_precision(tables),
            "auroc": area_under_roc(tables),
        }


class MultiLabel(Task):
    """Several labels an image: targets uint8 [N, L]."""

    name: ClassVar[str] = "multi-label"
    targets: ClassVar[str] = SEVERAL
    client_metric: ClassVar[str] = "mean_ap"
    class_axis: ClassVar[int] = 0
    per_image: ClassVar[PerImage] = "one of each"
    whole_image: ClassVar[bool] = True
    stacks: ClassVar[bool] = True

    def fits(self, targets: Targets) -> bool:
        """Return whether an image may have several labels."""
        return several(targets)

    def stats_shape(self, num_classes: int) -> Shape:
        """Return the shape of score histograms, [L, 2, 1024]."""
        return num_classes, 2, BINS

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        """Return the summed binary cross-entropy, a mean over labels, and each label's cell of each image."""
        having = targets.to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, having, reduction="none").mean(1).sum()
        label = torch.arange(logits.shape[1], device=logits.device)
        return Observed(loss, ((2 * label + targets.long()) * BINS + bin_of(logits)).flatten())

    def decide(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which labels each image has at probability 1/2, uint8 [B, L], and the sigmoid [B, L]."""
        return (logits >= 0).to(torch.uint8), logits.sigmoid()

    def example_targets(self, num_classes: int, image_size: tuple[int, int]) -> torch.Tensor:
        """Return the targets [L, L] of images of which each has one label alone."""
        return torch.eye(num_classes, dtype=torch.uint8)

    def scores(
        self,
        stats: MetricStats,
        counts: Sequence[int] | NDArray[Any] | None = None,
        extra: Mapping[str, MetricFn] | None = None,
    ) -> dict[str, float]:
        """Return mean AP, mean AUROC, macro and micro F1, then the mean AP of rare labels, then further ones.

        Means are over labels where defined; micro F1 is of all decisions together. A further
        metric gets the tables [L, 2, 1024].
        """
        histograms = ScoreHistograms.of(stats)
        found, decided = histograms.by_label(), histograms.decisions()
        right, false, missed = (int(values.sum()) for values in decided.values())
        result = {
            "mean_ap": mean_of(found["ap"]),
            "macro_auroc": mean_of(found["auroc"]),
            "macro_f1": mean_of(found["f1"]),
            "micro_f1": float(ratio(2 * right, 2 * right + false + missed)),
        }
        if counts is not None:
            for group, labels in tail_groups(counts).items():
                result[group] = mean_of(found["ap"][list(labels)])
        return result | {
            name: own_metric(name, metric, stats.tables()) for name, metric in (extra or {}).items()
        }

    def by_class(self, stats: MetricStats) -> dict[str, NDArray[Any]]:
        """Return positives, decisions at probability 1/2, what ``by_label`` has, of each label [L]."""
        histograms = ScoreHistograms.of(stats)
        return {"positives": histograms.positives, **histograms.decisions(), **histograms.by_label()}

    def client_score(self, stats: MetricStats) -> float:
        """Return the mean AP."""
        return mean_of(average_precision(stats.tables()))

    def to_record(self, stats: MetricStats) -> dict[str, Any]:
        """Return a table by label: images that have it, decisions, and what is made of the scores."""
        columns = {name: values.tolist() for name, values in self.by_class(stats).items()}
        return {"images": stats.examples, "labels": columns}
