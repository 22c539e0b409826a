"""Deletion and insertion where the truth is known: a network that looks at one pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedvision.config import TransformConfig
from fedvision.explanation import faithfulness as module
from fedvision.explanation.faithfulness import Faithfulness, between, blur, faithfulness, fill, ranks
from tests.explanation.networks import scored


class OnePixel(nn.Module):
    """Logits x and 0, x the image's pixel (1, 2)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 2]."""
        x = images[:, 0, 1, 2]
        return torch.stack([x, torch.zeros_like(x)], dim=1)


def probability(pixel: int) -> float:
    return 1 / (1 + math.exp(-(pixel - 128) / 255 * 4))


def test_the_pixel_that_counts_is_gone_first_and_comes_first() -> None:
    image = np.full((4, 4, 1), 128, np.uint8)
    image[1, 2] = 255
    right = np.zeros((4, 4), np.float32)
    right[1, 2] = 1
    network = scored(OnePixel(), classes=2)
    found = faithfulness(network, image, right, 0, grid=(4, 4), steps=4)
    here, gone, blurred = probability(255), probability(128), probability(int(blur(image)[1, 2, 0]))
    assert gone == 0.5
    assert found.deletion == pytest.approx((here / 2 + 3 * gone + gone / 2) / 4, abs=1e-6)
    assert found.insertion == pytest.approx((blurred / 2 + 3 * here + here / 2) / 4, abs=1e-6)
    # The opposite map lets the pixel go last and come last.
    last = faithfulness(network, image, 1 - right, 0, grid=(4, 4), steps=4)
    assert last.deletion == pytest.approx((here / 2 + 3 * here + gone / 2) / 4, abs=1e-6)
    assert last.insertion == pytest.approx((blurred / 2 + 3 * blurred + here / 2) / 4, abs=1e-6)
    assert found.gain > 0 > last.gain
    assert (found.random_deletion, found.random_insertion) == (last.random_deletion, last.random_insertion)


def test_the_random_map_has_the_maps_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one cell all of its pixels are equal."""
    seen: list[torch.Tensor] = []
    enlarged = module.enlarged
    monkeypatch.setattr(module, "enlarged", lambda cells, size: seen.append(cells) or enlarged(cells, size))
    image = np.zeros((4, 6, 1), np.uint8)
    for seed in (0, 0, 1):
        faithfulness(scored(OnePixel(), classes=2), image, np.zeros((4, 6)), 0, grid=(2, 3), seed=seed)
    assert [tuple(cells.shape) for cells in seen] == [(2, 3)] * 3
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_the_gain_is_against_the_random_map() -> None:
    found = Faithfulness(deletion=0.2, insertion=0.9, random_deletion=0.4, random_insertion=0.6)
    assert found.gain == pytest.approx(0.5)


def test_equal_shares_of_pixels_are_exchanged() -> None:
    start, end = np.zeros((2, 4, 1), np.uint8), np.full((2, 4, 1), 9, np.uint8)
    order = np.arange(8)[::-1].reshape(2, 4)
    found = between(start, end, order, 4)
    assert [int((image == 9).sum()) for image in found] == [2, 4, 6]
    assert found[0][1, :, 0].tolist() == [0, 0, 9, 9]


def test_the_largest_is_first_and_chance_orders_equal_ones() -> None:
    values = np.array([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
    found = ranks(values, np.random.default_rng(0))
    assert (found[0, 1], found[1, 0]) == (0, 1)
    assert sorted(found.ravel()) == list(range(6))
    others = {tuple(ranks(values, np.random.default_rng(seed)).ravel()) for seed in range(9)}
    assert len(others) > 1


def test_what_is_taken_away_becomes_the_mean_colour() -> None:
    mean = (0.1, 0.4, 0.995)
    config = TransformConfig(mean=mean, std=(0.2, 0.3, 0.4))
    assert fill(scored(OnePixel(), 3, transforms=config), 3).tolist() == [26, 102, 254]
    # Gray images that are shown as colour have one number for three.
    assert fill(scored(OnePixel(), 1, transforms=config), 1).tolist() == [127]


def test_blurring_keeps_what_is_even_and_spreads_what_is_not() -> None:
    assert np.array_equal(blur(np.full((5, 9, 3), 77, np.uint8)), np.full((5, 9, 3), 77))
    image = np.zeros((17, 17, 1), np.uint8)
    image[8, 8] = 255
    found = blur(image)[..., 0].astype(int)
    assert np.array_equal(found, found.T)
    assert found.argmax() == 8 * 17 + 8
    assert 0 < found.max() < 30
    assert blur(np.zeros((1, 3, 1), np.uint8)).shape == (1, 3, 1)
