"""The image files below a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedvision.errors import DataError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .dib .gif .ppm .pgm .pbm .pnm".split()
)
# What lies beside images as a matter of course and deserves no notice.
_COMPANIONS = frozenset(
    ".txt .md .rst .pdf .html .csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .log .py .mat .zip".split()
)
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


class Tree(NamedTuple):
    """What lies below a folder; hidden files and folders (``.name``, ``__name``) do not count."""

    images: tuple[str, ...]
    """Relative names of files with an image's suffix, with ``/``, sorted."""
    folders: tuple[str, ...]
    """Relative names of all folders, sorted."""
    others: Counter[str]
    """Files of other kinds that are no usual companions of images, by suffix."""


def walk(root: Path) -> Tree:
    """List everything below a folder; links to folders are followed, but never in a circle.

    Raises:
        DataError: The folder, or one below it, is missing or cannot be listed.
    """
    images, folders, others = [], [], Counter[str]()
    for name, is_folder in _below(root, "", frozenset()):
        suffix = _suffix(name)
        if is_folder:
            folders.append(name)
        elif suffix in IMAGE_SUFFIXES:
            images.append(name)
        elif suffix not in _COMPANIONS:
            others[suffix or "no suffix"] += 1
    return Tree(tuple(sorted(images)), tuple(sorted(folders)), others)


def files(root: Path, suffix: str) -> tuple[str, ...]:
    """Return the relative names of files of a kind below a folder, sorted; hidden ones do not count.

    Args:
        root: The folder.
        suffix: Such as ``".xml"``, whatever the case of its letters on disk.

    Raises:
        DataError: As for ``walk``.
    """
    found = (name for name, is_folder in _below(root, "", frozenset()) if not is_folder)
    return tuple(sorted(name for name in found if _suffix(name) == suffix))


def _suffix(name: str) -> str:
    """Return a file's suffix in lower case; of a compressed file both: ``.nii.gz``."""
    stem, last = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] + last if last in (".gz", ".bz2", ".xz", ".zst") else last


def _below(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """Yield (relative name, whether it is a folder) of everything below a folder."""
    try:
        stat = folder.stat()
        entries = [(entry.name, entry.is_dir()) for entry in os.scandir(folder)]
    except OSError as error:
        raise DataError(
            f"{folder}: this folder cannot be read: {error.strerror}; correct data.path"
        ) from error
    identity = (stat.st_dev, stat.st_ino)
    if identity in above:
        return
    for name, is_folder in entries:
        if name.startswith((".", "__")) or name.lower() in _SYSTEM_FILES:
            continue
        yield prefix + name, is_folder
        if is_folder:
            yield from _below(folder / name, f"{prefix}{name}/", above | {identity})
