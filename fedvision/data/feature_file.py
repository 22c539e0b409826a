"""Features of images on disk, each computed once: rows of numbers by image number, and which are there.

::

    CACHE/features/
    └── 3f1c...9a/         one backbone on one array of images; its name is the key
        ├── features.npy   float32 [N, V, 1, D], opened as a memory map; a row that is not there takes no disk
        └── known          one byte for each image: 1 where its row is there

Rows are written with plain writes (on a full disk a memory map would end the process), and said to be there
once they are on the disk. Several processes may fill one file: they write the same numbers.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvision.data.paths import cache_folder
from fedvision.errors import DataError

_FLUSH = 1 << 23
"""Bytes of rows after which those written are said to be there."""
_HEADER = 128
"""Bytes of an .npy file's header."""

Rows = Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Numbers of images [B] and their features [B, D], or those of V views of each, [B, V, D]."""


class FeatureFile:
    """The features of one array of images.

    Args:
        key: Hexadecimal digest of all that the features depend on.
        images: N, the images of the array.
        folder: Of all such files; by default beside the decoded images.
    """

    def __init__(self, key: str, images: int, folder: Path | None = None) -> None:
        self._images = images
        self.folder = (folder or cache_folder() / "features") / key

    def complete(
        self, numbers: NDArray[np.int64], rows: Callable[[NDArray[np.int64]], Rows]
    ) -> NDArray[np.float32]:
        """Return the features of all images, float32 [N, V, 1, D], those of some numbers computed first.

        Args:
            numbers: Images whose features will be read, int64 [n]; all other rows may be 0.
            rows: Computes the features of those of the numbers that are not there.

        Raises:
            DataError: The folder cannot be used, or its disk is full.
        """
        with self._guarded():
            missing, known = np.unique(numbers), self._known()
            missing = missing if known is None else missing[known[missing] == 0]
            if len(missing):
                self._write(rows(missing))
            os.utime(self.folder)
            return np.load(self.folder / "features.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def _known(self) -> NDArray[np.uint8] | None:
        """Return which rows are there [N]; None where no file is, or a damaged one, which is removed."""
        try:
            known = np.fromfile(self.folder / "known", np.uint8)
            features = np.load(self.folder / "features.npy", mmap_mode="r")
        except (FileNotFoundError, ValueError, EOFError):
            features = None
        if features is not None and len(known) == len(features) == self._images:
            return known
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def _write(self, rows: Rows) -> None:
        first = next(rows)
        self._create(first[1].shape[1:])
        written: list[NDArray[np.int64]] = []
        size = 0
        with (
            open(self.folder / "features.npy", "r+b", buffering=0) as features,
            open(self.folder / "known", "r+b", buffering=0) as known,
        ):
            try:
                for numbers, found in itertools.chain([first], rows):
                    for number, row in zip(numbers.tolist(), found, strict=True):
                        _write_at(features, row.tobytes(), _HEADER + number * row.nbytes)
                    written.append(numbers)
                    size += found.nbytes
                    if size >= _FLUSH:
                        _say_known(features, known, written)
                        written, size = [], 0
            finally:
                # What an interrupt leaves half done is kept as far as it came.
                _say_known(features, known, written)

    def _create(self, shape: tuple[int, ...]) -> None:
        """Make a file in which no row is there, unless another process was faster."""
        if self.folder.is_dir():
            return
        parent = self.folder.parent
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # features tell of private images
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=parent))
        try:
            views, width = shape if len(shape) == 2 else (1, *shape)
            header = _header((self._images, views, 1, width))
            with open(partial / "features.npy", "wb") as file:
                file.write(header)
                file.truncate(len(header) + 4 * views * width * self._images)
            (partial / "known").write_bytes(bytes(self._images))
            try:
                os.rename(partial, self.folder)
            except OSError:
                if not self.folder.is_dir():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder}: the cache of features cannot be used: {error.strerror or error}; free its "
                "disk, set $FEDVISION_CACHE to another folder, or set training.cache_features = false"
            ) from error


def remove_unused(folder: Path, days: float) -> None:
    """Remove the files of a folder that were not used for some days; 0 removes none."""
    if not days or not folder.is_dir():
        return
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if path.stat().st_mtime < time.time() - days * 86_400:
                shutil.rmtree(path, ignore_errors=True)


def _say_known(features: FileIO, known: FileIO, written: Iterable[NDArray[np.int64]]) -> None:
    os.fsync(features.fileno())
    for number in itertools.chain.from_iterable(numbers.tolist() for numbers in written):
        _write_at(known, b"\x01", number)


def _write_at(file: FileIO, data: bytes, offset: int) -> None:
    view = memoryview(data)
    file.seek(offset)
    while view:
        view = view[file.write(view) :]


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy file of ``_HEADER`` bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    assert len(header.getvalue()) == _HEADER
    return header.getvalue()
