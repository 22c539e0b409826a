"""Mapped images travel by name: equal pixels, no copy, and a clear word where the file is missing."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from fedvision.data.dataset import ImageSet
from fedvision.data.memmap import MemmapArray, reference
from fedvision.errors import DataError


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    loaded: np.ndarray = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    return loaded


@pytest.mark.parametrize("part", [slice(None), slice(50, 120), slice(199, 200)])
def test_images_come_back_equal_and_cost_no_bytes(mapped: np.ndarray, part: slice) -> None:
    images = mapped[part][1:] if part.start == 50 else mapped[part]
    before = ImageSet(images=images, labels=np.zeros(len(images), np.int64))
    sent = pickle.dumps(before)
    assert len(sent) < 1000 + 8 * len(images)
    after = pickle.loads(sent)
    assert isinstance(after.images, np.memmap)
    np.testing.assert_array_equal(after.images, images)


def test_images_in_memory_travel_whole() -> None:
    images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    after = pickle.loads(pickle.dumps(ImageSet(images=images, labels=np.zeros(1, np.int64))))
    np.testing.assert_array_equal(after.images, images)


def test_a_view_with_gaps_is_not_a_reference(mapped: np.ndarray) -> None:
    assert reference(mapped[::2]) is None
    assert reference(np.zeros(3)) is None


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must see the data set and the cache at the same paths"):
        MemmapArray(str(tmp_path / "gone.npy"), 0, (1,), "|u1").open()
