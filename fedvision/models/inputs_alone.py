"""A Transformer that reads what is known of an image beside its pixels, and no pixel.

::

    [model.inputs] ── tokens [B, T, D] ── transformer ── [B, D]
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedvision.inputs import Batch, InputConfig
from fedvision.models.base import Backbone
from fedvision.models.input_tokens import InputTokens, separate
from fedvision.models.transformer import Transformer


class InputsAlone(Backbone):
    """Further tokens and a Transformer."""

    def __init__(self, further: InputTokens, transformer: Transformer, dim: int) -> None:
        super().__init__()
        self.further = further
        self.transformer = transformer
        self.out_features = dim

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return [B, D]."""
        _, further = separate(batch, self.further)
        x: torch.Tensor = self.transformer(None, further)
        return x


def inputs_alone(
    inputs: Mapping[str, InputConfig], *, dim: int, depth: int, heads: int, dropout: float
) -> InputsAlone:
    """Build the network; the keys are the Transformer's.

    Raises:
        ValueError: There are no inputs.
    """
    if not inputs:
        raise ValueError("extractor = 'none' reads [model.inputs] alone, and there are none; name one")
    further = InputTokens(inputs, dim)
    transformer = Transformer(0, (0, 0), dim=dim, depth=depth, heads=heads, dropout=dropout)
    return InputsAlone(further, transformer, dim)
