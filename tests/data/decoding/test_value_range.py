"""Folders whose images use a small part of their range: a notice with the number of files, or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.bit_depth import Depth
from fedvision.data.decoding.value_range import dark_images, narrow_files
from fedvision.data.sources.arrays import npz
from fedvision.data.sources.image_folder import image_folder
from fedvision.errors import DataError


def folder(root: Path, *tops: int, dtype: type[np.unsignedinteger] = np.uint16, white: float = 0) -> Dataset:
    for number, top in enumerate(tops):
        (root / "images/cat").mkdir(parents=True, exist_ok=True)
        values = np.array([[0, top // 3], [2 * top // 3, top]], dtype)
        Image.fromarray(values).save(root / f"images/cat/{number}.png")
    return image_folder(
        path=str(root / "images"), size=2, channels=1, workers=1, range=white, cache=str(root / "cache")
    )


def test_ten_bits_in_sixteen_need_a_range(tmp_path: Path) -> None:
    """Without a word they would arrive as 0, 1, 3 and 4 of 255."""
    message = (
        r"2 files hold 16 bits a channel, but no pixel of them is above 1,023 of 65,535.*\(1023 for 10 bits"
    )
    for _ in range(2):  # The second time from the cache.
        with pytest.raises(DataError, match=message):
            folder(tmp_path, 1023, 1000)
    dataset = folder(tmp_path, 1023, 1023, white=1023)
    assert dataset.train.images.reshape(2, 4).tolist() == [[0, 85, 170, 255]] * 2
    assert dataset.notices == ("in 2 files with more than 8 bits 1,023 is white, as they or data.range say",)
    assert folder(tmp_path, 1023, 1023, white=65535).train.images.max() == 4


def test_notice_on_less_than_half_of_the_range(tmp_path: Path) -> None:
    (notice,) = folder(tmp_path, 16383, 9000).notices
    assert notice.startswith("2 files hold 16 bits a channel, but no pixel of them is above 16,383 of 65,535")


def test_some_narrow_files_among_others_are_counted(tmp_path: Path) -> None:
    (notice,) = folder(tmp_path, 65535, 1023, 65535, 4095, 0).notices
    assert notice.startswith("2 files hold 16 bits a channel, but no pixel of them is above 4,095 of 65,535")
    assert notice.endswith("the other 3 use it")


def test_no_notice_on_the_full_range(tmp_path: Path) -> None:
    assert folder(tmp_path, 65535, 40000).notices == ()
    assert narrow_files({"black.png": Depth(65535, 0, True)}, tmp_path) == ()


def test_notice_on_dark_8_bit_images(tmp_path: Path) -> None:
    sentence = "no pixel is above 15 of 255 in 2 images; if 15 is white, set data.range to it"
    assert folder(tmp_path, 15, 9, dtype=np.uint8).notices == (sentence,)
    dataset = folder(tmp_path, 15, 15, dtype=np.uint8, white=15)
    assert dataset.notices == ()
    assert dataset.train.images.max() == 255
    assert dark_images(np.array([[[0], [64]]], np.uint8)[..., None], "") == ()
    # One shade shows no range.
    assert dark_images(np.full((2, 2, 2, 1), 9, np.uint8), "") == ()


def test_notice_on_dark_arrays(tmp_path: Path) -> None:
    images = np.ones((3, 2, 2), np.uint8)
    images[:, 0] = 0
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.array([0, 1, 0]))
    (notice,) = npz(path=str(tmp_path / "a.npz")).notices
    assert notice.startswith("no pixel is above 1 of 255 in 3 images; if 1 is white, multiply them")
