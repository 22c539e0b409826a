"""Sizes that are known beforehand are those of the images themselves."""

from __future__ import annotations

from typing import Any

import pytest

from fedvision.data.sources.arrays import digits
from fedvision.data.sources.known_sizes import SIZES, image_size
from fedvision.registry import BUILTINS


def test_digits_have_the_size_that_is_known_of_them() -> None:
    assert image_size("digits", {}) == digits().train.images.shape[1:]
    assert set(SIZES) <= set(BUILTINS["data"])


@pytest.mark.parametrize(
    ("use", "args", "size"),
    [
        ("elsewhere", {"height": 20, "width": 30, "channels": 1}, (20, 30, 1)),
        ("elsewhere", {"height": 20, "width": 30}, (20, 30, 3)),
        ("image-folder", {"size": 64, "channels": 1}, (64, 64, 1)),
        ("flowers102", {"size": 64}, (64, 64, 3)),
        ("npz", {"path": "own.npz"}, None),
        ("mine:source", {"size": "large"}, None),
    ],
)
def test_size_follows_the_keys(use: str, args: dict[str, Any], size: tuple[int, int, int] | None) -> None:
    assert image_size(use, args) == size
