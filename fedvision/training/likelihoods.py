"""How likely a model's probabilities make what clients keep out of training, at many temperatures at once.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599) divides
all logits by one number, which changes no prediction, only how sure the model is. The best number for all
clients' images follows from sums of losses: no image and no image's probability leaves its client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision.errors import ConfigError
from fedvision.training.statistics import LocalData
from fedvision.types import Query, State

OCTAVES, PER_OCTAVE = 4, 8
"""Factors on the logits from 1/16 to 16, and how many of them double it."""


@torch.no_grad()
def likelihoods(*, model: nn.Module, data: LocalData, tensors: State) -> dict[str, torch.Tensor]:
    """Losses of the task on images kept out of training, in nats: ``loss`` [S], and how many ``images`` [1].

    Args:
        model: The network, in evaluation mode.
        data: The client's images.
        tensors: ``scale`` float64 [S]: probabilities are those of s z for the network's logits z.

    Raises:
        ConfigError: No images are kept out of training, or the query lacks its tensor.
    """
    if "scale" not in tensors:
        raise ConfigError("the statistic likelihoods needs the query's tensor scale")
    if data.held_out is None:
        raise ConfigError("likelihoods are of images kept out of training; set evaluation.holdout > 0")
    scales, task = tensors["scale"].tolist(), data.settings.task
    losses = torch.zeros(len(scales), dtype=torch.float64)
    for x, targets in data.of(data.held_out).batches():
        outputs = model(x)
        for place, scale in enumerate(scales):
            logits = task.measured(outputs, data.num_classes, scale)
            losses[place] += task.observe(logits, targets, data.num_classes).loss.cpu().double()
    return {"loss": losses, "images": torch.tensor([len(data.held_out)])}


def query(scale: float) -> Query:
    """Return the query for likelihoods around s, with which the model's probabilities are made so far."""
    factors = 2.0 ** (np.arange(-OCTAVES * PER_OCTAVE, OCTAVES * PER_OCTAVE + 1) / PER_OCTAVE)
    return Query(use="likelihoods", tensors={"scale": torch.from_numpy(scale * factors)})


def best_factor(sums: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return what a record has of the answers to ``query``.

    Args:
        sums: ``loss`` [S] and ``images`` [1] over all clients; empty where nobody answered.

    Returns:
        ``images``; of any ``factor``, which times s gives the least loss (a parabola through the least three
        in log s), and the mean ``loss`` in nats with s and ``scaled_loss`` with the best of those tried.
    """
    images = int(sums["images"][0]) if sums else 0
    if not images or not np.isfinite(sums["loss"]).all():
        return {"images": images}
    losses, middle = sums["loss"] / images, OCTAVES * PER_OCTAVE
    best = int(np.argmin(losses))
    if losses[middle] <= losses[best]:  # ties, as of a model without any weight, leave it as it is
        best = middle
    place = float(best)
    if 0 < best < len(losses) - 1:
        before, here, after = losses[best - 1 : best + 2]
        bend = before - 2 * here + after
        place += 0.5 * float((before - after) / bend) if bend > 0 else 0.0
    return {
        "images": images,
        "factor": 2.0 ** ((place - middle) / PER_OCTAVE),
        "loss": float(losses[middle]),
        "scaled_loss": float(losses[best]),
    }
