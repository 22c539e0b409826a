"""A network as explanations see it: many images in batches, and nothing left behind."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.explanation.networks import scored


class FirstPixel(nn.Module):
    """Logits x and 0, x the image's first pixel; notes the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 2]."""
        self.sizes.append(len(images))
        x = images[:, 0, 0, 0]
        return torch.stack([x, torch.zeros_like(x)], dim=1)


def test_more_images_than_a_batch_keep_their_order() -> None:
    network = FirstPixel()
    pixels = np.array([0, 60, 120, 180, 240], np.uint8)
    few = dataclasses.replace(scored(network, classes=2), batch_size=2)
    found = few.probabilities(pixels.reshape(5, 1, 1, 1), None)
    assert network.sizes == [2, 2, 1]
    expected = [1 / (1 + math.exp(-(int(pixel) - 128) / 255 * 4)) for pixel in pixels]
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.sum(axis=1).tolist() == pytest.approx([1.0] * 5)
