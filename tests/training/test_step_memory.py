"""What a step keeps: it stays for a whole pass, between the blocks of memory that the next step needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedvision.inputs import Batch
from fedvision.training import loop
from fedvision.types import LossFn
from tests.training.client_cases import Cohort, settings


class Watched(Cohort):
    """Notes where the loss wrote what it made of each batch."""

    def build_loss(self, counts: torch.Tensor) -> LossFn:
        plain = super().build_loss(counts)

        def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            found = plain(logits, labels)
            made.append(found.data_ptr())
            return found

        return loss


made: list[int] = []


def test_the_losses_of_a_step_are_kept_where_the_loss_wrote_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy made after the backward pass took a piece of each block that it had freed: 400 MB."""
    kept: list[int] = []
    step = loop._Step.__call__

    def watched(self: Any, x: Batch, targets: torch.Tensor) -> torch.Tensor:
        losses = step(self, x, targets)
        kept.append(losses.data_ptr())
        return losses

    monkeypatch.setattr(loop._Step, "__call__", watched)
    made.clear()
    Watched(settings=settings(batch_size=4)).one_by_one()
    assert len(kept) > 5
    assert kept == made
