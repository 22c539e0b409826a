"""Standardised features in whole steps: q = clip(round(128 (x - m) / s), -1023, 1023), 11 bits.

Shape letters: B batch, D features.
"""

from __future__ import annotations

import torch

STEPS = 128
"""Steps of one deviation to which standardised features are rounded."""
CUT = 1023
"""Steps at which they are cut off."""


def in_steps(features: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Return features [B, D] in whole steps, in the constants' type; infinite ones are cut off.

    Args:
        features: Of a backbone.
        mean: m [D].
        deviation: s [D].
    """
    standard = (features.to(mean.dtype) - mean) / deviation
    return (standard * STEPS).round().clamp(-CUT, CUT)
