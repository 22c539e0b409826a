"""Images without labels, to be predicted: files, folders and .npz files, read a batch at a time.

Nothing is kept: such images are looked at once, so the cache of decoded images would only grow by them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.data.decoding.bit_depth import Depth
from fedvision.data.decoding.process_pool import PixelFormat, decode_all
from fedvision.data.decoding.scan import walk
from fedvision.data.decoding.value_range import narrow_files
from fedvision.data.paths import expand_home
from fedvision.data.sources.csv_table import read_table
from fedvision.data.sources.npz_archive import Archive
from fedvision.errors import DataError


class NamedImages(NamedTuple):
    """Some images with their names."""

    names: list[str]
    """[B]: ``FILE``, ``FILE:ARRAY[NUMBER]``, or ``NUMBER`` of an array in memory."""
    images: NDArray[np.uint8]
    """uint8 [B, H, W, channels]."""


class UnlabelledImages:
    """Images to be predicted; iterating reads them, in batches of those that can be read.

    Args:
        images: Image files, folders of these at any depth, .npz files whose arrays ``images`` or
            ``NAME_images`` hold uint8 [N, H, W] or [N, H, W, channels], and .csv files whose column ``file``
            names image files, as seen from there; or one such array.
        shape: (H, W, channels) of the images.
        pixel_format: What becomes of files; None where the images can only be arrays.
        batch_size: Images a batch; a batch does not go over from files to an array.
        workers: Processes that decode; 0 is one per CPU core where that pays.

    Raises:
        DataError: A folder or an .npz file holds no images or cannot be read, an array has another shape or
            type, or files are given and the images can only be arrays.
    """

    unreadable: dict[str, str]
    """Files that could not be read so far, each with the reason."""
    notices: list[str]
    """What a person should know of the images read so far."""
    cells: dict[str, Mapping[str, str]]
    """Names of images that a .csv file lists -> what it says of them, by column."""

    def __init__(
        self,
        images: Sequence[str | Path] | NDArray[np.uint8],
        shape: tuple[int, int, int],
        pixel_format: PixelFormat | None,
        *,
        batch_size: int,
        workers: int = 0,
    ) -> None:
        self._shape, self._format = shape, pixel_format
        self._batch_size, self._workers = batch_size, workers
        self.unreadable, self.notices, self.cells = {}, [], {}
        self._parts: list[list[str] | tuple[str, NDArray[np.uint8]]] = []
        if isinstance(images, np.ndarray):
            self._parts.append(("", fitting(images, shape, "the array of images")))
            return
        for path in map(expand_home, map(str, images)):
            stored = path.suffix.lower() == ".npz" and path.is_file()
            self._parts += self._arrays(path) if stored else [self._files(path)]

    def __iter__(self) -> Iterator[NamedImages]:
        for are_files, parts in itertools.groupby(self._parts, lambda part: isinstance(part, list)):
            if are_files:
                yield from self._decoded([name for part in parts for name in part if isinstance(name, str)])
                continue
            for part in parts:
                assert isinstance(part, tuple)
                yield from self._sliced(*part)

    def _files(self, path: Path) -> list[str]:
        if self._format is None and path.exists():
            height, width, channels = self._shape
            raise DataError(
                f"{path}: the model takes images of {height} x {width} with {channels} channel(s), which no "
                "file is brought to; give them as uint8 arrays in an .npz file"
            )
        if self._format is None:
            raise DataError(f"{path}: there is no such file; name an .npz file")
        if path.suffix.lower() == ".csv" and path.is_file():
            return self._listed(path)
        if not path.is_dir():
            return [str(path)]
        tree = walk(path)
        if not tree.images:
            raise DataError(f"{path}: there are no images in this folder; name another one, or its files")
        if tree.others:
            self.notices.append(f"{path}: {tree.others.total():,} files are no images by their suffix")
        return [f"{path}/{name}" for name in tree.images]

    def _listed(self, path: Path) -> list[str]:
        rows = read_table(path, ",", "utf-8", [])
        found = {str(path.parent / row.cells.get("file", "")): row for row in rows}
        if not rows or any(not row.cells.get("file") for row in rows) or len(found) < len(rows):
            raise DataError(
                f"{path}: each row must name an image of its own in the column 'file'; columns are parted by "
                "commas"
            )
        self.cells |= {name: row.cells for name, row in found.items()}
        return list(found)

    def _arrays(self, path: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        archive, found = Archive(path), 0
        for name in archive.names:
            if name == "images" or name.endswith("_images"):
                found += 1
                yield f"{path}:{name}", fitting(archive.read(name), self._shape, f"{path}: {name}")
        if not found:
            raise DataError(
                f"{path}: it holds {', '.join(archive.names) or 'nothing'}; save the images as an array "
                "called images"
            )

    def _decoded(self, names: list[str]) -> Iterator[NamedImages]:
        assert self._format is not None
        deep: dict[str, Depth] = {}
        waiting: list[NamedImages] = []
        start = 0
        for outcomes, images in decode_all(Path(), names, self._format, self._workers):
            chunk = names[start : start + len(outcomes)]
            start += len(outcomes)
            results = list(zip(chunk, outcomes, strict=True))
            self.unreadable |= {name: why for name, why in results if isinstance(why, str)}
            deep |= {name: facts for name, facts in results if isinstance(facts, Depth)}
            waiting.append(NamedImages([name for name, why in results if not isinstance(why, str)], images))
            while sum(len(part.names) for part in waiting) >= self._batch_size:
                whole = _joined(waiting)
                yield NamedImages(whole.names[: self._batch_size], whole.images[: self._batch_size])
                waiting = [NamedImages(whole.names[self._batch_size :], whole.images[self._batch_size :])]
        if any(part.names for part in waiting):
            yield _joined(waiting)
        try:
            self.notices += narrow_files(deep, Path())
        except DataError as error:  # the run took white for the same value; whether it should, a person says
            self.notices.append(str(error).removeprefix(".: "))

    def _sliced(self, name: str, images: NDArray[np.uint8]) -> Iterator[NamedImages]:
        for start in range(0, len(images), self._batch_size):
            part = np.array(images[start : start + self._batch_size])
            numbers = range(start, start + len(part))
            yield NamedImages([f"{name}[{i}]" if name else str(i) for i in numbers], part)


def fitting(images: NDArray[Any], shape: tuple[int, int, int], where: str) -> NDArray[np.uint8]:
    """Return images [N, H, W, channels] that a network takes.

    Args:
        images: [N, H, W, channels], or [N, H, W] where there is one channel.
        shape: (H, W, channels).
        where: Their place, for the error.

    Raises:
        DataError: They are no uint8 or have another shape.
    """
    found = images[..., None] if images.ndim == 3 and shape[2] == 1 else images
    if images.dtype != np.uint8 or found.ndim != 4 or found.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise DataError(
            f"{where} is {images.dtype} {list(images.shape)}, and the model takes uint8 [N, {wanted}] with "
            "pixels 0..255; bring the images to that shape"
        )
    return found


def _joined(parts: Sequence[NamedImages]) -> NamedImages:
    names = [name for part in parts for name in part.names]
    return NamedImages(names, np.concatenate([part.images for part in parts]))
