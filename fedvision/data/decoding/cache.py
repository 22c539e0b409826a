"""Decoded images on disk, keyed by what is in their files, so that a second start decodes nothing.

::

    CACHE/
    ├── 3f1c...9a/             one list of files, decoded one way; its name is the key
    │   ├── images.npy         uint8 [n, size, size, channels], opened as a memory map
    │   ├── deep.json          {"number in the list": Depth} of files with more than 8 bits a channel
    │   └── notes.json         {"number in the list": "why it cannot be read", or what else a source notes}
    ├── seen/5b70...1e         a list's names, sizes and times -> its key: one stat a file instead of a read
    └── partial-.../           being written; renamed when complete, swept when it has not grown for an hour

The key is a digest over every file's content, in order, and the recipe. A file that changes by one byte is
decoded again; a folder that is moved, copied or renamed is not.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.data.decoding.bit_depth import Depth
from fedvision.data.decoding.process_pool import Answer, PixelFormat
from fedvision.errors import DataError

_RACY_NS = 2_000_000_000
"""A file that changed this shortly before it was read may change again without another time stamp."""
_STALE_S = 3600


class Entry(NamedTuple):
    """One decoded list of files."""

    images: NDArray[np.uint8]
    """uint8 [n, size, size, channels] of the readable files, in order; a memory map."""
    notes: Mapping[int, Any]
    """Number in the list, from 0 -> why the file cannot be read, or what else a source notes of it."""
    deep: Mapping[int, Depth]
    """Number in the list, from 0 -> how deep a file of more than 8 bits a channel is."""


class Cache:
    """A folder of entries.

    Args:
        folder: Created when missing, for its owner alone: images may be private.

    Raises:
        DataError: The folder cannot be created or, in any method, cannot be read or written or is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with self._guarded():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / "seen").mkdir(exist_ok=True, mode=0o700)

    def recall(self, fingerprint: str) -> str | None:
        """Return the key that was remembered for a fingerprint, if any."""
        with self._guarded(), contextlib.suppress(FileNotFoundError):
            return (self.folder / "seen" / fingerprint).read_text()
        return None

    def remember(self, fingerprint: str, key: str, latest: int, started: int) -> None:
        """Remember the key of a fingerprint, unless a file changed too shortly before it was read.

        Args:
            fingerprint: Of the list of files.
            key: Of their contents.
            latest: Latest time of any file, nanoseconds.
            started: When the first file was read, nanoseconds.
        """
        if started - latest > _RACY_NS:
            with self._partial() as partial, self._guarded():
                (partial / "key").write_text(key)
                os.replace(partial / "key", self.folder / "seen" / fingerprint)

    def load(self, key: str) -> Entry | None:
        """Open an entry; None where there is none, or only a damaged one, which is removed."""
        with self._guarded():
            try:
                notes = json.loads((self.folder / key / "notes.json").read_text())
                deep = json.loads((self.folder / key / "deep.json").read_text())
                images = np.load(self.folder / key / "images.npy", mmap_mode="r")
            except (FileNotFoundError, ValueError, EOFError):  # A power cut can leave a file short.
                shutil.rmtree(self.folder / key, ignore_errors=True)
                return None
        return Entry(
            images,
            {int(number): note for number, note in notes.items()},
            {int(number): Depth(*facts) for number, facts in deep.items()},
        )

    def store(self, key: str, files: int, pixel_format: PixelFormat, answers: Iterable[Answer]) -> None:
        """Write an entry; it appears whole or not at all.

        Args:
            key: Its key.
            files: Length of the list.
            pixel_format: How it is decoded.
            answers: From ``decode_all``; written as they come, so memory holds a few chunks at most.
        """
        shape = (files, pixel_format.size, pixel_format.size, pixel_format.channels)
        self._sweep()
        self._need(int(np.prod(shape)))
        with self._partial() as partial:
            notes, deep = self._write(partial / "images.npy", shape, answers)
            with self._guarded():
                (partial / "deep.json").write_text(json.dumps(deep))
                (partial / "notes.json").write_text(json.dumps(notes))
                try:
                    os.rename(partial, self.folder / key)
                except OSError:
                    # Another process was faster with the same images; its entry serves.
                    if not (self.folder / key).is_dir():
                        raise

    def _write(
        self, path: Path, shape: tuple[int, int, int, int], answers: Iterable[Answer]
    ) -> tuple[dict[int, Any], dict[int, Depth]]:
        """Write images.npy with plain writes: on a full disk a memory map would end the process."""
        notes: dict[int, Any] = {}
        deep: dict[int, Depth] = {}
        seen = count = 0
        with self._guarded(), open(path, "wb") as file:
            file.write(_header(shape))
            for outcomes, images in answers:
                notes |= {seen + i: note for i, note in enumerate(outcomes) if isinstance(note, str | list)}
                deep |= {seen + i: facts for i, facts in enumerate(outcomes) if isinstance(facts, Depth)}
                seen, count = seen + len(outcomes), count + len(images)
                file.write(images.tobytes())
            file.seek(0)
            file.write(_header((count, *shape[1:])))
            file.flush()
            os.fsync(file.fileno())
        return notes, deep

    def _need(self, size: int) -> None:
        with self._guarded():
            free = shutil.disk_usage(self.folder).free
        if size > free:
            raise DataError(
                f"{self.folder}: decoded images take {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
                "make room, set data.cache or $FEDVISION_CACHE to another disk, or lower data.size"
            )

    @contextlib.contextmanager
    def _partial(self) -> Iterator[Path]:
        with self._guarded():
            partial = Path(tempfile.mkdtemp(prefix="partial-", dir=self.folder))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed processes left half written."""
        for partial in self.folder.glob("partial-*"):
            with contextlib.suppress(FileNotFoundError):  # Just renamed by its owner.
                latest = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
                if time.time() - latest > _STALE_S:
                    shutil.rmtree(partial, ignore_errors=True)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder}: the cache of decoded images cannot be used: {error.strerror or error}; "
                "free its disk, or set data.cache or $FEDVISION_CACHE to another folder"
            ) from error


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy file; NumPy leaves room for a longer first axis: its length is fixed."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()
