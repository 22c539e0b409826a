"""Arrays leave an .npz file as they went in, without a copy where the file allows it, never unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedvision.data.sources.npz_archive import Archive
from fedvision.errors import DataError

ARRAYS = {
    "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "columns_first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.empty((0, 5), np.int16),
    "scalar": np.array(7),
    "text": np.array(["a", "bc"]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_out_as_they_went_in(tmp_path: Path, save: object) -> None:
    assert callable(save)
    save(tmp_path / "a.npz", **ARRAYS)
    archive = Archive(tmp_path / "a.npz")
    for name, array in ARRAYS.items():
        assert name in archive
        found = archive.read(name)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
    assert "other" not in archive


def test_what_is_stored_is_mapped_and_what_is_compressed_is_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)
    np.savez_compressed(tmp_path / "b.npz", **ARRAYS)
    stored, loaded = (Archive(tmp_path / name).read("images") for name in ("a.npz", "b.npz"))
    assert isinstance(stored, np.memmap)
    assert not stored.flags.writeable
    assert not isinstance(loaded, np.memmap)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_python_objects_are_refused(tmp_path: Path, save: object) -> None:
    assert callable(save)
    save(tmp_path / "a.npz", evil=np.array([print], dtype=object))
    with pytest.raises(DataError, match=r"a\.npz: the array 'evil' cannot be read: .*(bject|pickle)"):
        Archive(tmp_path / "a.npz").read("evil")


def test_a_missing_array_lists_what_there_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(1), y=np.zeros(1))
    with pytest.raises(DataError, match=r"a\.npz: there is no array 'z'; it holds x, y$"):
        Archive(tmp_path / "a.npz").read("z")


def test_a_missing_file_and_one_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: this file cannot be read: No such file .*data\.path"):
        Archive(tmp_path / "none.npz")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"a\.npy: this is no \.npz file"):
        Archive(tmp_path / "a.npy")


def test_a_member_that_is_no_array_and_a_damaged_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("text.npy", "no array")
        file.writestr("x.npy", b"")
    for name in ("text", "x"):
        with pytest.raises(DataError, match=f"the array '{name}' cannot be read"):
            Archive(tmp_path / "a.npz").read(name)
    np.savez(tmp_path / "b.npz", x=np.zeros(1000))
    archive = Archive(tmp_path / "b.npz")
    data = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(data[:500])
    with pytest.raises(DataError, match="the array 'x' cannot be read"):
        archive.read("x")
    (tmp_path / "b.npz").write_bytes(b"XX" + data[2:])
    with pytest.raises(DataError, match="its header is damaged"):
        archive.read("x")
