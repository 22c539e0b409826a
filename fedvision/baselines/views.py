"""What is noted of one model on one set of images, small enough to be noted for each of 1,000 clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedvision.tasks.base import Task
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.training.evaluate import Evaluation
from fedvision.types import MetricFn


def view(
    task: Task, found: Evaluation, counts: Sequence[int], extra: Mapping[str, MetricFn]
) -> dict[str, Any] | None:
    """Return ``examples``, ``loss``, ``scores``, and of classes ``images`` and ``right`` [C].

    Args:
        task: What was counted.
        found: The counts.
        counts: The federation's training images of each class [C], from which rare classes follow.
        extra: Further scores.

    Returns:
        None without images.
    """
    if not found.examples:
        return None
    facts: dict[str, Any] = {
        "examples": found.examples,
        "loss": found.loss_sum / max(1, task.examples(found.stats)),
        "scores": task.scores(found.stats, counts if any(counts) else None, extra),
    }
    if "confusion" in task.to_record(found.stats):
        confusion = ConfusionCounts.of(found.stats)
        facts |= {"images": confusion.images_of, "right": confusion.right_of}
    return facts
