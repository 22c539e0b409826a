"""PatchCamelyon's files, seen through a stand-in for h5py, which is no requirement of the project."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedvision.data.sources.pcam import pcam_arrays
from tests.data.layouts import noise

HEADER = 512


class Stored:
    """An HDF5 data set: an array, and where its bytes begin in the file."""

    def __init__(self, array: np.ndarray[Any, Any], offset: int | None) -> None:
        self.array, self.shape = array, array.shape
        self.id = SimpleNamespace(get_offset=lambda: offset)

    def __getitem__(self, key: object) -> np.ndarray[Any, Any]:
        return self.array[key]  # type: ignore[index,no-any-return]


@pytest.mark.parametrize("offset", [HEADER, None])
def test_images_in_one_piece_are_mapped_and_others_loaded(tmp_path: Path, offset: int | None) -> None:
    images, labels = noise(3, 96, 96, 3), np.array([1, 0, 1], np.uint8).reshape(3, 1, 1, 1)
    (tmp_path / "x.h5").write_bytes(bytes(HEADER) + images.tobytes())

    class File(dict[str, Stored]):
        def __init__(self, path: Path, mode: str) -> None:
            assert mode == "r"
            super().__init__(x=Stored(images, offset)) if path.name == "x.h5" else super().__init__(
                y=Stored(labels, None)
            )

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self.clear()

    made = SimpleNamespace(
        h5py=SimpleNamespace(File=File),
        _base_folder=tmp_path,
        _split="train",
        _FILES={"train": {"images": ("x.h5", "", ""), "targets": ("y.h5", "", "")}},
    )
    found, classes = pcam_arrays(made)
    np.testing.assert_array_equal(found, images)
    assert isinstance(found, np.memmap) == (offset is not None)
    assert classes.tolist() == [1, 0, 1]
    assert classes.dtype == np.int64
