"""Resizing inside a graph beside Pillow's, with which files are decoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedvision.data.decoding.pixels import fitted_to
from fedvision.data.transforms import resize
from fedvision.export.resampling import Fit, FixedResize, PillowResize
from tests.export.models import noise


def resized(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], side: int, fit: Fit) -> torch.Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32)
    return PillowResize((side, side), fit)(pixels).permute(0, 2, 3, 1)


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["crop", "stretch", "pad"]))
def test_a_gray_value_is_pillows_or_the_next_one(height: int, width: int, fit: Fit) -> None:
    images = noise(1, (height, width, 3))
    wanted = np.asarray(fitted_to(Image.fromarray(images[0]), 12, fit)).astype(np.float32)
    assert np.abs(resized(images, 12, fit)[0].numpy() - wanted).max() <= 1


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_images_of_the_own_size_stay_to_the_bit(fit: Fit) -> None:
    images = noise(2, (17, 17, 1))
    assert np.array_equal(resized(images, 17, fit).numpy(), images.astype(np.float32))


def test_half_the_size_by_hand() -> None:
    """A triangle two pixels wide on each side: weights 1, 3, 3, 1 of 8, at the border 3, 3, 1 of 7."""
    row = np.array([0, 70, 140, 210], np.uint8)[None, None, :, None].repeat(4, axis=1)
    first = np.floor((3 * 0 + 3 * 70 + 140) / 7 + 0.5)
    last = np.floor((70 + 3 * 140 + 3 * 210) / 7 + 0.5)
    assert resized(row, 2, "stretch")[0, :, :, 0].tolist() == [[first, last]] * 2


def test_the_centre_is_kept_or_bars_are_added() -> None:
    wide = np.zeros((1, 2, 6, 1), np.uint8)
    wide[:, :, 2:4] = 200
    assert resized(wide, 2, "crop")[0, :, :, 0].tolist() == [[200, 200], [200, 200]]
    white = np.full((1, 2, 4, 1), 255, np.uint8)
    padded = resized(white, 4, "pad")[0, :, :, 0]
    assert padded.tolist() == [[0] * 4, [255] * 4, [255] * 4, [0] * 4]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("side", [5, 20])
def test_the_transforms_own_resize_is_two_matrices(interpolation: str, side: int) -> None:
    x = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    found = FixedResize((9, 12), side, interpolation)(x)
    torch.testing.assert_close(found, resize(x, side, interpolation), atol=2e-6, rtol=1e-5)
