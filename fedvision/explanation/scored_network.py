"""A network as explanations see it: logits with a gradient, probabilities without, and nothing left behind.

Shape letters: B batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision.inputs import Batch
from fedvision.models.tensor_checks import put_back
from fedvision.tasks.base import Task
from fedvision.training.evaluate import classify
from fedvision.training.forward import ForwardSettings

_SUREST = 1e-12
"""Distance from 0 and 1 that a probability keeps where its log-odds are taken."""


@dataclass(frozen=True, kw_only=True)
class ScoredNetwork:
    """A network and what makes probabilities of its outputs."""

    network: nn.Module
    """On the device of the settings."""
    settings: ForwardSettings
    """Task, normalisation, device and precision."""
    num_classes: int
    """C."""
    sharpness: float = 1.0
    """s; probabilities are those of logits s z for the network's logits z."""
    batch_size: int = 100
    """Images a forward pass."""

    @property
    def task(self) -> Task:
        """What outputs mean."""
        return self.settings.task

    def inputs(self, image: NDArray[np.uint8], further: NDArray[np.float32] | None) -> Batch:
        """Return one image [H, W, channels], with what is read beside it [W], as a batch of one."""
        rows = None if further is None else further[None]
        return self.settings.inputs(torch.from_numpy(image[None]), rows)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return logits float32 [B, C], in float32 arithmetic: gradients of fewer bits are noise."""
        found: torch.Tensor = self.task.measured(self.network(batch), self.num_classes, self.sharpness)
        return found

    @torch.no_grad()
    def log_odds(self, batch: Batch, label: int) -> list[float]:
        """Return log p / (1 - p) of a class's probability p for each image.

        Unlike a logit it does not depend on a number added to all logits, and unlike p it does not saturate.
        """
        shares = self.task.decide(self.logits(batch).cpu().double())[1][:, label]
        return [math.log(p / (1 - p)) for p in shares.clamp(_SUREST, 1 - _SUREST).tolist()]

    def probabilities(
        self, images: NDArray[np.uint8], further: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return the probabilities [B, C] of images [B, H, W, channels], as the run measures them.

        Args:
            images: The images.
            further: What the network reads beside each of them, the same [W] for all.
        """
        found = []
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            rows = None if further is None else np.repeat(further[None], len(part), axis=0)
            found.append(
                classify(
                    self.network,
                    part,
                    self.settings,
                    num_classes=self.num_classes,
                    sharpness=self.sharpness,
                    further=rows,
                )[1]
            )
        return np.concatenate(found)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation, with gradients allowed, and leave modes and buffers as they were."""
    training = {module: module.training for module in network.modules()}
    try:
        with put_back(network), torch.enable_grad():
            network.eval()
            yield
    finally:
        for module, before in training.items():
            module.training = before
