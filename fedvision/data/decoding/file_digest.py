"""What a list of files holds: a cheap digest of their times and an exact one of their contents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

_VERSION = f"3 pillow {PIL.__version__}"
"""Part of every digest: raise the number when other pixels or masks are made of the same file."""
_AHEAD = 1024


def fingerprint(root: Path, names: Sequence[str], recipe: tuple[object, ...]) -> tuple[str, int]:
    """Digest names, sizes and times: one stat a file.

    The change time (ctime) counts beside the modification time: a copy that restores the latter does not
    pass for the old file.

    Args:
        root: The folder that the names are relative to.
        names: The files, in order.
        recipe: How they are decoded.

    Returns:
        Hexadecimal digest, and the latest time of any file in nanoseconds.
    """
    digest, latest = hashlib.sha256(f"{_VERSION} {tuple(recipe)}".encode()), 0
    digest.update(os.fsencode(root))
    for name in names:
        try:
            stat = os.stat(os.path.join(root, name))
            facts = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            latest = max(latest, *facts[1:])
        except OSError as error:
            facts = (-1, error.errno or 0, 0)
        digest.update(b"\0%b\0%d %d %d" % (os.fsencode(name), *facts))
    return digest.hexdigest(), latest


def contents(root: Path, names: Sequence[str]) -> Iterator[bytes]:
    """Yield SHA-256 of each file's content, in order; a few threads read ahead."""
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(names), _AHEAD):
            yield from pool.map(lambda name: _content(root / name), names[start : start + _AHEAD])


def key(digests: Iterable[bytes], recipe: tuple[object, ...]) -> str:
    """Return the hexadecimal key of a list of contents, decoded one way."""
    digest = hashlib.sha256(f"{_VERSION} {tuple(recipe)}".encode())
    for content in digests:
        digest.update(content)
    return digest.hexdigest()[:40]


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        # Part of the key as well: once the file can be read, the key is another.
        return hashlib.sha256(f"unreadable {error.errno}".encode()).digest()
