"""What a task measures of one batch."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Observed(NamedTuple):
    """What is measured of a batch of B images, on the device where the outputs are."""

    loss: torch.Tensor
    """The sum of the examples' losses in nats, whatever loss the training uses."""
    cells: torch.Tensor
    """int64 [T n]: the cells in which the T tables count the n examples."""
    rows: torch.Tensor | None = None
    """int64 [M, W]: the first number is the image's place in the batch, rising; None where the task has
    none."""
