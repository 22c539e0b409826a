"""Measure a model on a shard: confusion counts and the summed loss, never a ratio.

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
from torch.nn import functional as F

from fedvision.data.shards import Shard
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.training.loop import LoopSettings, forward_pass


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was counted on N images."""

    confusion: ConfusionCounts
    """How many of them, by true and predicted class."""
    loss_sum: float
    """Sum of cross-entropies in nats of the predicted probabilities, whatever loss the training uses."""

    @property
    def examples(self) -> int:
        """Number of images counted."""
        return self.confusion.images


def evaluate(
    model: nn.Module,
    shard: Shard,
    settings: LoopSettings,
    *,
    batch_size: int,
    num_classes: int,
    sharpness: float = 1.0,
) -> Evaluation:
    """Count a model's predictions on a shard.

    Args:
        model: The network, on ``settings.device``.
        shard: N images; N = 0 gives empty counts.
        settings: Transforms, device and precision of the run.
        batch_size: Images a forward pass.
        num_classes: C.
        sharpness: s; the predicted probabilities are softmax(s z) of logits z.
    """
    # Nothing is asked of the device before all batches are on their way to it.
    losses, found = [], [torch.empty((2, 0), dtype=torch.int64, device=settings.device)]
    for logits, labels in _logits(model, shard, settings, batch_size, sharpness):
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        found.append(torch.stack([labels, logits.argmax(1)]))
    labelled, predicted = torch.cat(found, dim=1).cpu().numpy()
    loss_sum = sum(torch.stack(losses).tolist()) if losses else 0.0
    counted = ConfusionCounts.from_predictions(labelled, predicted, num_classes)
    return Evaluation(confusion=counted, loss_sum=loss_sum)


def predict(
    model: nn.Module, shard: Shard, settings: LoopSettings, *, batch_size: int, sharpness: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each image's predicted class [N] and the probability, softmax(sharpness z), given to it [N]."""
    classes, confidence = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for logits, _ in _logits(model, shard, settings, batch_size, sharpness):
        best = logits.softmax(1).max(1)
        classes.append(best.indices.cpu().numpy())
        confidence.append(best.values.cpu().numpy())
    return np.concatenate(classes), np.concatenate(confidence)


@torch.no_grad()
def _logits(
    model: nn.Module, shard: Shard, settings: LoopSettings, batch_size: int, sharpness: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield float32 logits [B, C], times the sharpness, and labels [B] in the shard's order."""
    model.eval()
    for start in range(0, len(shard), batch_size):
        images, labels = shard.batch(np.arange(start, min(start + batch_size, len(shard))))
        pixels = torch.from_numpy(images).to(settings.device)
        x = settings.transform.normalise(pixels, channels_last=settings.training.channels_last)
        with forward_pass(settings.training, settings.device):
            logits = model(x)
        yield (
            logits.float() * sharpness if sharpness != 1 else logits.float(),
            torch.from_numpy(labels).to(settings.device),
        )
