"""Measure a model on a shard: counts and the summed loss, never a ratio.

On a CPU a forward pass over more than about 100 images of 28x28 maps and faults its activations anew on every
batch, which made larger batches 1.7 to 2 times slower; hence the default of ``evaluation.batch_size``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision.data.shards import Shard
from fedvision.tasks.base import Task
from fedvision.tasks.stats import MetricStats
from fedvision.training.forward import ForwardSettings


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was counted on N images."""

    stats: MetricStats
    """How many of them, by what the task tells apart."""
    loss_sum: float
    """Sum of the task's own losses in nats of the predicted probabilities, whatever the training uses."""

    @property
    def examples(self) -> int:
        """Number of images counted."""
        return self.stats.images


def evaluate(
    model: nn.Module,
    shard: Shard,
    settings: ForwardSettings,
    *,
    task: Task,
    batch_size: int,
    num_classes: int,
    sharpness: float = 1.0,
) -> Evaluation:
    """Count a model's predictions on a shard.

    Args:
        model: The network, on ``settings.device``.
        shard: N images; N = 0 gives empty counts.
        settings: Normalisation, device and precision of the run.
        task: What is counted.
        batch_size: Images a forward pass.
        num_classes: C.
        sharpness: s; the predicted probabilities are those of logits s z for the network's logits z.
    """
    # Nothing is asked of the device before all batches are on their way to it.
    losses, found = [], [torch.empty(0, dtype=torch.int64, device=settings.device)]
    for logits, labels in _logits(model, shard, settings, batch_size, sharpness):
        loss, cells = task.observe(logits, labels)
        losses.append(loss)
        found.append(cells)
    loss_sum = sum(torch.stack(losses).tolist()) if losses else 0.0
    stats = MetricStats.from_cells(torch.cat(found).cpu().numpy(), task.stats_shape(num_classes))
    return Evaluation(stats=stats, loss_sum=loss_sum)


def predict(
    model: nn.Module, shard: Shard, settings: ForwardSettings, *, batch_size: int, sharpness: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each image's predicted class [N] and the probability, softmax(sharpness z), given to it [N]."""
    classes, confidence = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for logits, _ in _logits(model, shard, settings, batch_size, sharpness):
        best = logits.softmax(1).max(1)
        classes.append(best.indices.cpu().numpy())
        confidence.append(best.values.cpu().numpy())
    return np.concatenate(classes), np.concatenate(confidence)


def classify(
    model: nn.Module, images: NDArray[np.uint8], settings: ForwardSettings, *, sharpness: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return a batch's predicted classes int64 [B] and the probabilities of all classes float32 [B, C].

    The classes are those that ``evaluate`` counts: of the logits, as two probabilities may be equal where
    their logits are not.

    Args:
        model: The network, on ``settings.device``.
        images: uint8 [B, H, W, channels].
        settings: Normalisation, device and precision of the run.
        sharpness: s; the probabilities are softmax(s z) of logits z.
    """
    model.eval()
    logits = _scaled(model, images, settings, sharpness)
    return logits.argmax(1).cpu().numpy(), logits.softmax(1).cpu().numpy()


def _logits(
    model: nn.Module, shard: Shard, settings: ForwardSettings, batch_size: int, sharpness: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield float32 logits [B, C], times the sharpness, and labels [B] in the shard's order."""
    model.eval()
    for start in range(0, len(shard), batch_size):
        images, labels = shard.batch(np.arange(start, min(start + batch_size, len(shard))))
        yield (
            _scaled(model, images, settings, sharpness),
            torch.from_numpy(labels).to(settings.device),
        )


@torch.no_grad()
def _scaled(
    model: nn.Module, images: NDArray[np.uint8], settings: ForwardSettings, sharpness: float
) -> torch.Tensor:
    """Return a batch's float32 logits [B, C], times the sharpness."""
    x = settings.inputs(images)
    with settings.one_model():
        logits: torch.Tensor = model(x)
    return logits.float() * sharpness if sharpness != 1 else logits.float()
