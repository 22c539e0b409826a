"""Measure a model on a shard: counts and the summed loss, never a ratio.

On a CPU a forward pass over more than about 100 images of 28x28 maps and faults its activations anew on every
batch, which made larger batches 1.7 to 2 times slower; hence the default of ``evaluation.batch_size``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision import seeding
from fedvision.data.shards import Shard
from fedvision.devices import widest_float
from fedvision.inputs import Batch
from fedvision.tasks.base import Task
from fedvision.tasks.calibration import Calibration
from fedvision.tasks.stats import MetricStats
from fedvision.training.forward import ForwardSettings
from fedvision.types import LossFn

_CELLS = 2**24
"""Cells (128 MiB) that wait on the device before they are counted: pixels are many."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was counted on N images."""

    stats: MetricStats
    """How many of them, by the task's categories."""
    loss_sum: float
    """Sum of the task's own losses in nats of the predicted probabilities, whatever the training uses."""
    personal: Evaluation | None = None
    """What the client's personal model counts on the same images, where the method has one beside the global
    model."""

    @property
    def examples(self) -> int:
        """Number of images counted."""
        return self.stats.examples


class Predicted(NamedTuple):
    """What is predicted for N images."""

    classes: NDArray[np.int64]
    """The class of each [N]."""
    confidence: NDArray[np.float32]
    """The probability given to it [N]."""
    calibration: Calibration
    """What the probabilities tell."""


def evaluate(
    model: nn.Module,
    shard: Shard,
    settings: ForwardSettings,
    *,
    batch_size: int,
    num_classes: int,
    sharpness: float = 1.0,
    calibration: Calibration | None = None,
) -> Evaluation:
    """Count a model's predictions on a shard.

    Args:
        model: The network, on ``settings.device``.
        shard: N images; N = 0 gives empty counts.
        settings: Task, normalisation, device and precision of the run.
        batch_size: Images a forward pass.
        num_classes: C.
        sharpness: s; the predicted probabilities are those of logits s z for the network's logits z.
        calibration: To which the probabilities are added, where each image has one class.
    """
    task = settings.task
    # No device synchronisation before all batches are on their way to it.
    losses, found = [], [torch.empty(0, dtype=torch.int64, device=settings.device)]
    counted = [MetricStats.empty(task.stats_shape(num_classes))]
    rows = [torch.empty((0, task.row_width), dtype=torch.int64, device=settings.device)]
    images = 0
    for outputs, targets in _outputs(model, shard, settings, batch_size):
        logits = task.measured(outputs, num_classes, sharpness)
        observed = task.observe(logits, targets, num_classes)
        losses.append(observed.loss)
        found.append(observed.cells)
        if sum(map(len, found)) >= _CELLS:
            counted.append(MetricStats.from_cells(torch.cat(found).cpu().numpy(), counted[0].shape))
            found.clear()
        if observed.rows is not None:
            rows.append(torch.cat([observed.rows[:, :1] + images, observed.rows[:, 1:]], 1))
        images += len(targets)
        if calibration is not None:
            best, shares = task.decide(logits)
            calibration.add(shares.cpu().numpy(), best.cpu().numpy(), targets.cpu().numpy())
    loss_sum = sum(torch.stack(losses).tolist()) if losses else 0.0
    if found:
        counted.append(MetricStats.from_cells(torch.cat(found).cpu().numpy(), counted[0].shape))
    stats = replace(MetricStats.total(counted), rows=torch.cat(rows).cpu().numpy())
    return Evaluation(stats=stats, loss_sum=loss_sum)


def mean_loss(
    model: nn.Module, shard: Shard, settings: ForwardSettings, loss: LossFn, *, batch_size: int
) -> float:
    """Return the mean training loss over a shard in evaluation mode, without augmentation.

    Args:
        model: The network, on ``settings.device``.
        shard: N images, at least one.
        settings: As of ``evaluate``.
        loss: Per example, outputs and targets [B, ...] -> [B].
        batch_size: Images a forward pass.
    """
    sums = [
        loss(outputs, targets).sum(dtype=widest_float(settings.device))
        for outputs, targets in _outputs(model, shard, settings, batch_size)
    ]
    return float(torch.stack(sums).sum()) / len(shard)


def predict(
    model: nn.Module,
    shard: Shard,
    settings: ForwardSettings,
    *,
    batch_size: int,
    num_classes: int,
    sharpness: float = 1.0,
) -> Predicted:
    """Return what is predicted for images of one class each; arguments as of ``evaluate``."""
    classes, confidence = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    calibration = Calibration(num_classes)
    for outputs, targets in _outputs(model, shard, settings, batch_size):
        logits = settings.task.measured(outputs, num_classes, sharpness)
        best, shares = settings.task.decide(logits)
        named, probabilities = best.cpu().numpy(), shares.cpu().numpy()
        calibration.add(probabilities, named, targets.cpu().numpy())
        classes.append(named)
        confidence.append(np.take_along_axis(probabilities, named[:, None], 1)[:, 0])
    return Predicted(np.concatenate(classes), np.concatenate(confidence), calibration)


def classify(
    model: nn.Module,
    images: NDArray[np.uint8],
    settings: ForwardSettings,
    *,
    num_classes: int,
    sharpness: float = 1.0,
    further: NDArray[np.float32] | None = None,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return what the task decides for a batch of images, and the probabilities of all classes.

    The decisions are those that ``evaluate`` counts: of the logits, as two probabilities may be equal where
    their logits are not.

    Args:
        model: The network, on ``settings.device``.
        images: uint8 [B, H, W, channels].
        settings: Task, normalisation, device and precision of the run.
        num_classes: C.
        sharpness: s; the probabilities are those of logits s z for the network's logits z.
        further: float32 [B, W]: what the network reads beside the pixels, None where it reads nothing.

    Returns:
        Classes int64 [B], or uint8 [B, C] of 0 and 1 where an image may have several labels, and float32
        [B, C]; of a dense task classes [B, H, W] and float32 [B, C, H, W].
    """
    outputs = outputs_of(model, images, settings, further)
    decided, probabilities = settings.task.decide(settings.task.measured(outputs, num_classes, sharpness))
    return decided.cpu().numpy(), probabilities.cpu().numpy()


def nothing_decided(
    task: Task, num_classes: int, image_size: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return what a task decides for no image, and the probabilities of that, as ``classify`` returns them.

    Args:
        task: The task.
        num_classes: C.
        image_size: (H, W).

    Raises:
        ConfigError: It does not say what is predicted.
    """
    shape = (0, num_classes, *image_size) if task.dense else (0, num_classes)
    decided, probabilities = task.decide(torch.zeros(shape))
    found = decided.to(torch.uint8) if task.dense else decided
    return found.numpy(), probabilities.numpy()


def outputs_of(
    model: nn.Module,
    images: NDArray[np.uint8],
    settings: ForwardSettings,
    further: NDArray[np.float32] | None = None,
) -> Any:
    """Return what a network makes of a batch of images in evaluation mode; arguments as of ``classify``."""
    model.eval()
    return _forward(model, settings.inputs(torch.from_numpy(images), further), settings)


def _outputs(
    model: nn.Module, shard: Shard, settings: ForwardSettings, batch_size: int
) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yield the network's outputs and the targets [B, ...] in the shard's order."""
    model.eval()
    for start in range(0, len(shard), batch_size):
        x, targets = settings.batch(shard, np.arange(start, min(start + batch_size, len(shard))))
        yield _forward(model, x, settings), targets


@torch.no_grad()
def _forward(model: nn.Module, x: Batch, settings: ForwardSettings) -> Any:
    # Which process measures which batches, and when, must be of no matter.
    with seeding.evaluation_streams() if settings.draws else nullcontext(), settings.one_model():
        return model(x)
