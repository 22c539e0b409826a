"""What is learned from an image: its targets, what is counted of predictions, and what is said of the counts.

A task is one file, a plug-in of kind ``task``. Whatever carries, masks, sums or records measurements works on
``MetricStats`` alone and asks the task what they mean. Every task here has one output of the network for each
class, [B, C], and class counts [C]: how many training images each class is in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedvision import registry
from fedvision.data import targets
from fedvision.data.targets import Targets
from fedvision.errors import DataError
from fedvision.tasks.stats import MetricStats, Shape
from fedvision.types import MetricFn, PluginSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedvision.config import ExperimentConfig
    from fedvision.data.dataset import Dataset


ONE_CLASS = "one class an image"
SEVERAL = (
    "any number of labels an image (npz with labels [N, L], or manifest with data.labels or "
    "data.label_separator)"
)


class Task(ABC):
    """One kind of learning problem."""

    name: ClassVar[str]
    """As ``[task] use`` says it; losses and metrics name the tasks that they are for."""
    several_labels: ClassVar[bool] = False
    """Whether targets are uint8 [N, L], of which an image may have several, or int64 [N]."""
    client_metric: ClassVar[str]
    """Key of the score by which clients are compared, as records have it."""

    class_axis: ClassVar[int]
    """Which number of a shape (T, R, S) is the number of classes."""

    def shape_for(self, declared: Shape, num_classes: int) -> Shape:
        """Return the shape that counts must have: over C classes, or as many as they tell where C = 0."""
        return self.stats_shape(num_classes or declared[self.class_axis])

    @abstractmethod
    def stats_shape(self, num_classes: int) -> Shape:
        """Return the shape (T, R, S) of what is counted over C classes."""

    @abstractmethod
    def observe(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Measure a batch where the logits are; nothing is asked of the device.

        Args:
            logits: float32 [B, C].
            labels: Targets [B, ...] on the same device.

        Returns:
            The sum of the images' losses in nats, whatever loss the training uses, and the cells, int64
            [T B], in which the tables of ``MetricStats`` count the images.
        """

    @abstractmethod
    def only(self, num_classes: int) -> torch.Tensor:
        """Return the targets [C, ...] of images of which each is of one class alone."""

    def strata(self, labels: Targets) -> NDArray[np.int64]:
        """Return the number, int64 [N], by which partition, long tail and holdout spread each image."""
        return targets.strata(labels)

    def check(self, config: ExperimentConfig, dataset: Dataset) -> None:
        """Check that the data and what the experiment names beside the task are for it.

        Raises:
            DataError: The data has targets of another form.
            PluginError: The loss or a metric is for other tasks.
        """
        where = f"[task] use = {config.task.use!r}"
        if targets.several(dataset.train.labels) != self.several_labels:
            wanted, found = ONE_CLASS, SEVERAL
            if self.several_labels:
                wanted, found = found, wanted
            raise DataError(f"{where} needs {wanted}, and [data] use = {config.data.use!r} has {found}")
        registry.check_task("loss", config.loss.use, self.name)
        for use in config.evaluation.metrics:
            registry.check_task("metric", use, self.name)

    @abstractmethod
    def scores(
        self,
        stats: MetricStats,
        counts: Sequence[int] | NDArray[Any] | None = None,
        extra: Mapping[str, MetricFn] | None = None,
    ) -> dict[str, float]:
        """Return the figures that every run reports, shares of 1; NaN where no image tells.

        Args:
            stats: Summed counts over C classes.
            counts: Training images of each class [C], of which rare classes are told; None where unknown.
            extra: Further metrics by name.
        """

    @abstractmethod
    def client_score(self, stats: MetricStats) -> float:
        """Return a client's score ``client_metric``."""

    @abstractmethod
    def to_record(self, stats: MetricStats) -> dict[str, Any]:
        """Return what a round's record keeps of the counts, JSON values by key."""

    def client_spread(self, stats: Mapping[int, MetricStats]) -> dict[str, float]:
        """Describe how ``client_score`` differs over clients that have images, each client alike.

        Args:
            stats: Each client's own counts by its number.

        Returns:
            ``clients`` (how many have images), ``worst`` and ``best`` score with ``worst_client`` and
            ``best_client`` (the lowest number of several) and the images on which these two rest,
            ``worst_images`` and ``best_images``, ``mean``, ``std`` (of this population, divided by its size),
            ``p10`` (10th percentile, interpolated). All but ``clients`` are NaN where nobody has images.
        """
        found = {client: self.client_score(one) for client, one in sorted(stats.items()) if one.images}
        measured = {client: score for client, score in found.items() if not np.isnan(score)}
        if not measured:
            worst_and_best = ("worst_client", "worst", "worst_images", "best_client", "best", "best_images")
            return {"clients": 0, **dict.fromkeys((*worst_and_best, "mean", "std", "p10"), float("nan"))}
        worst, best = min(measured, key=measured.__getitem__), max(measured, key=measured.__getitem__)
        values = np.array(list(measured.values()))
        return {
            "clients": len(measured),
            "worst_client": worst,
            "worst": measured[worst],
            "worst_images": stats[worst].images,
            "best_client": best,
            "best": measured[best],
            "best_images": stats[best].images,
            "mean": float(values.mean()),
            "std": float(values.std()),
            "p10": float(np.percentile(values, 10)),
        }


def build_task(spec: PluginSpec) -> Task:
    """Return the task that an experiment's ``[task]`` names.

    Raises:
        PluginError: It is unknown, or its arguments do not fit.
    """
    task: Task = registry.build("task", spec)
    return task
