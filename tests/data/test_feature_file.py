"""Features on disk: each row computed once, whatever ends the program that writes them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedvision.data import feature_file
from fedvision.data.feature_file import FeatureFile, Rows
from fedvision.data.memmap import reference
from fedvision.errors import DataError

WIDTH = 3


def features(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows [n, 3] that tell their numbers."""
    return (numbers[:, None] * 10 + np.arange(WIDTH) + 0.5).astype(np.float32)


class Computed:
    """Computes rows in batches of two, and notes for which numbers."""

    def __init__(self, stop: int = 1 << 30) -> None:
        self.numbers: list[int] = []
        self.stop = stop

    def __call__(self, missing: NDArray[np.int64]) -> Rows:
        for start in range(0, len(missing), 2):
            if len(self.numbers) >= self.stop:
                raise KeyboardInterrupt
            batch = missing[start : start + 2]
            self.numbers += batch.tolist()
            yield batch, features(batch)


@given(wanted=st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1, max_size=4))
def test_each_row_is_computed_once(wanted: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, seen = tmp_path_factory.mktemp("features"), list[int]()
    for numbers in wanted:
        computed = Computed()
        found = FeatureFile("a" * 40, 10, folder).complete(np.array(numbers), computed)
        assert found.shape == (10, 1, 1, WIDTH)
        assert np.array_equal(found[numbers, 0, 0], features(np.array(numbers)))
        assert computed.numbers == sorted(set(numbers).difference(seen))
        seen += numbers


def test_an_interrupted_computation_is_kept_as_far_as_it_came(tmp_path: Path) -> None:
    file, numbers = FeatureFile("a", 9, tmp_path), np.arange(9)
    with pytest.raises(KeyboardInterrupt):
        file.complete(numbers, Computed(stop=4))
    rest = Computed()
    assert np.array_equal(file.complete(numbers, rest)[:, 0, 0], features(numbers))
    assert rest.numbers == [4, 5, 6, 7, 8]


def test_rows_are_said_to_be_there_only_once_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that was said to be there and is not would be read as zeros."""
    monkeypatch.setattr(feature_file, "_FLUSH", 1)
    order: list[str] = []
    write = feature_file._write_at

    def noted(file: object, data: bytes, offset: int) -> None:
        order.append("known" if data == b"\x01" else "row")
        write(file, data, offset)  # type: ignore[arg-type]

    monkeypatch.setattr(feature_file, "_write_at", noted)
    monkeypatch.setattr(feature_file.os, "fsync", lambda number: order.append("sync"))
    FeatureFile("a", 2, tmp_path).complete(np.arange(2), Computed())
    assert order == ["row", "row", "sync", "known", "known", "sync"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "known").write_bytes(b"\1\1"),
        lambda folder: (folder / "known").unlink(),
        lambda folder: (folder / "features.npy").write_bytes(b"\x93NUMPY"),
        lambda folder: (folder / "features.npy").write_bytes((folder / "features.npy").read_bytes()[:-1]),
    ],
    ids=["known short", "known gone", "header cut", "rows cut"],
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    file, numbers = FeatureFile("a", 4, tmp_path), np.arange(4)
    file.complete(numbers, Computed())
    damage(file.folder)
    again = Computed()
    assert np.array_equal(file.complete(numbers, again)[:, 0, 0], features(numbers))
    assert again.numbers == [0, 1, 2, 3]


def test_other_images_have_a_file_of_their_own(tmp_path: Path) -> None:
    FeatureFile("a", 4, tmp_path).complete(np.arange(4), Computed())
    other = Computed()
    FeatureFile("b", 4, tmp_path).complete(np.arange(4), other)
    assert other.numbers == [0, 1, 2, 3]


def test_features_are_a_memory_map_that_others_may_not_read(tmp_path: Path) -> None:
    file = FeatureFile("a", 4, tmp_path / "private")
    assert reference(file.complete(np.arange(4), Computed())) is not None
    assert (tmp_path / "private").stat().st_mode & 0o077 == 0
    assert file.folder.stat().st_mode & 0o077 == 0


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, data: bytes, offset: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_file, "_write_at", full)
    with pytest.raises(DataError, match=r"No space left on device; free its disk.*cache_features = false"):
        FeatureFile("a", 4, tmp_path).complete(np.arange(4), Computed())
