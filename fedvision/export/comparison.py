"""Versions of one model on the same labelled images: size, latency, accuracy, and the worst class's recall.

Latency is processor time of one thread, taken in turns, the median of some turns: on an idle machine that is
the time that passes, and on a busy one the neighbours are not in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.cores import one_thread
from fedvision.data.masks import IGNORED, is_masks
from fedvision.data.targets import several
from fedvision.export.checks import Predictor
from fedvision.tasks import metrics
from fedvision.tasks.confusion import ConfusionCounts

if TYPE_CHECKING:
    from fedvision.data.shards import Shard

BATCHES = (1, 32)
"""Images of a batch whose latency is measured."""
_TURNS, _LEAST_TURNS, _SECONDS = 30, 5, 20.0


class Scores(NamedTuple):
    """How right a version is."""

    accuracy: float | None
    """Share of images, or pixels, whose class is right; None where an image may have several labels."""
    balanced_accuracy: float | None
    """Mean of the classes' recalls, likewise."""
    worst_class: int | None
    """The class, or label, with the lowest recall, the first of equals; None where there are no images."""
    worst_recall: float | None
    """That recall."""
    decided: NDArray[Any]
    """Predicted classes int64 [N] or [N, H, W], or labels bool [N, L]."""


def measure(predict: Predictor, shard: Shard, classes: int, batch_size: int) -> Scores:
    """Measure a version.

    Args:
        predict: The version.
        shard: N labelled images of the network's size.
        classes: C.
        batch_size: Images at a time.
    """
    found = [
        predict(np.array(shard.images[part]), None if shard.further is None else shard.further[part])
        for part in _parts(shard.indices, batch_size)
    ]
    labels = shard.labels[shard.indices]
    probabilities = np.concatenate(found) if found else np.zeros((0, classes), np.float32)
    if several(labels):
        decided = probabilities >= 0.5
        having = labels.astype(np.bool_)
        recall = metrics.ratio((decided & having).sum(0), having.sum(0))
        return Scores(None, None, *_worst(recall), decided)
    named = probabilities.argmax(axis=1)
    if is_masks(labels):
        known = labels != IGNORED
        counts = ConfusionCounts.from_predictions(labels[known].astype(np.int64), named[known], classes)
    else:
        counts = ConfusionCounts.from_predictions(labels, named, classes)
    worst = _worst(metrics.recall(counts))
    return Scores(metrics.accuracy(counts), metrics.balanced_accuracy(counts), *worst, named)


def _parts(indices: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _worst(recall: NDArray[np.float64]) -> tuple[int | None, float | None]:
    """Return the class with the lowest recall and that; classes without images are left out."""
    if np.isnan(recall).all():
        return None, None
    worst = int(np.nanargmin(recall))
    return worst, float(recall[worst])


def latencies(
    versions: Mapping[str, Predictor],
    images: NDArray[np.uint8],
    further: NDArray[np.float32] | None = None,
    *,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, dict[str, float]]:
    """Return milliseconds an image, by version and images of a batch.

    Args:
        versions: By name; each must compute in the calling thread.
        images: uint8 [N, H, W, channels], N >= 1, repeated where a batch needs more.
        further: float32 [N, W] of networks that read such.
        clock: Seconds that the thread has computed.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in versions}
    with one_thread():
        for batch in BATCHES:
            rows = np.arange(batch) % len(images)
            given = np.array(images[rows]), None if further is None else further[rows]
            for name, seconds in _turns(versions, given, clock).items():
                found[name][str(batch)] = 1000 * statistics.median(seconds) / batch
    return found


def _turns(
    versions: Mapping[str, Predictor],
    given: tuple[NDArray[np.uint8], NDArray[np.float32] | None],
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Return each version's seconds, one after the other in each turn; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    started = time.monotonic()
    for turn in range(_TURNS + 1):
        for name, predict in versions.items():
            begun = clock()
            predict(*given)
            if turn:
                seconds[name].append(clock() - begun)
        if turn >= _LEAST_TURNS and time.monotonic() - started > _SECONDS:
            break
    return seconds


def machine() -> dict[str, Any]:
    """Return processor, threads and versions."""
    from importlib.metadata import PackageNotFoundError, version

    from fedvision.runs.environment import environment

    facts = environment("cpu")
    found = {key: facts[key] for key in ("processor", "platform", "python", "torch", "fedvision")}
    try:
        found["onnxruntime"] = version("onnxruntime")
    except PackageNotFoundError:
        found["onnxruntime"] = None
    return {**found, "threads": 1}
