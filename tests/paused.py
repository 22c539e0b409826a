"""A loss that pauses: a process is still at work when a test strikes it, however busy the machine is."""

from __future__ import annotations

import os
import time

import torch

SECONDS = "SECONDS_THAT_A_LOSS_PAUSES"
"""Variable of the environment; without it there is no pause, and the bits are the same."""


class PausedCrossEntropy(torch.nn.CrossEntropyLoss):
    """Cross entropy of each image."""

    def __init__(self) -> None:
        super().__init__(reduction="none")

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        time.sleep(float(os.environ.get(SECONDS, "0")))
        return super().forward(input, target)
