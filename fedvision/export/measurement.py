"""What versions of a run's model take and find on the same labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from fedvision.runs.model_versions import ModelVersion

if TYPE_CHECKING:
    from fedvision.data.shards import Shard
    from fedvision.export.checks import Predictor
    from fedvision.trained_model import TrainedModel

ORIGINAL = "PyTorch, as trained"
"""Name of the run's own model among its versions."""


class Labelled(NamedTuple):
    """Labelled images on which versions are measured."""

    shard: Shard
    """The images, as ``TrainedModel.labelled`` returns them."""
    what: str
    """Which they are, in words."""


def original_of(model: TrainedModel) -> ModelVersion:
    """Return the run's own model as a version."""
    from fedvision.trained_model import TENSORS

    size = (model.path / TENSORS).stat().st_size
    return ModelVersion(name=ORIGINAL, kind="original", file=TENSORS, bytes=size)


def measured(
    model: TrainedModel, versions: Sequence[tuple[ModelVersion, Predictor]], data: Labelled
) -> list[ModelVersion]:
    """Return versions with latency and scores; their times are taken in turns.

    Args:
        model: The run's own model, whose classes and batches they have.
        versions: Each with what computes its probabilities; names differ.
        data: The images.
    """
    from fedvision.export import comparison

    shard, size = data.shard, model.description.inference.batch_size
    few = shard.indices[: max(comparison.BATCHES)]
    rows = None if shard.further is None else shard.further[few]
    predictors = {version.name: predict for version, predict in versions}
    took = comparison.latencies(predictors, shard.images[few], rows)
    found = []
    for version, predict in versions:
        scores = comparison.measure(predict, shard, len(model.classes), size)
        worst = None if scores.worst_class is None else model.classes[scores.worst_class]
        found.append(
            replace(
                version,
                latency_ms=took[version.name],
                accuracy=scores.accuracy,
                balanced_accuracy=scores.balanced_accuracy,
                worst_class=worst,
                worst_recall=scores.worst_recall,
                images=len(shard),
                part=data.what,
                machine=comparison.machine(),
            )
        )
    return found
