"""What is made of files, such as pixels and masks, is made once and then found in the cache."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from fedvision.data.decoding import file_digest
from fedvision.data.decoding.cache import Cache, Entry
from fedvision.data.decoding.process_pool import Answer, PixelFormat
from fedvision.data.paths import cache_folder
from fedvision.errors import DataError
from fedvision.stages import stage

T = TypeVar("T")


def decode_once(
    cache: str,
    root: Path,
    names: Sequence[str],
    pixel_format: PixelFormat,
    *,
    what: str,
    number: int,
    make: Callable[[], Iterable[Answer]],
    meaning: tuple[object, ...] = (),
    digests: Callable[[], Iterable[bytes]] | None = None,
    advance: Callable[[Answer], int] = lambda answer: len(answer[0]),
) -> Entry:
    """Return what the cache keeps of files, made where it keeps nothing.

    Args:
        cache: Its folder, as ``data.cache``.
        root: The folder that the names are relative to.
        names: All files on which the result depends; their sizes and times are looked at each time.
        pixel_format: The result's size, channels and geometry.
        what: What is decoded, in the plural, for the screen.
        number: How many of them there are.
        make: Yields the outcomes, some at a time; asked where the contents are new.
        meaning: What else the result depends on, as values that print alike in every process.
        digests: Yields what the result depends on, asked where sizes or times are new; by default each file's
            content.
        advance: How many of ``number`` some outcomes are.

    Raises:
        DataError: The cache cannot be used, or what ``make`` raises.
    """
    kept, recipe, started = Cache(cache_folder(cache)), (*pixel_format, *meaning), time.time_ns()
    fingerprint, latest = file_digest.fingerprint(root, names, recipe)
    key = kept.recall(fingerprint)
    if key is None:
        stage(f"looking at {number:,} {what} in {root}")
        found = digests() if digests else file_digest.contents(root, names)
        key = file_digest.key(_shown(found, f"Checking {what}", len(names), lambda _: 1), recipe)
        kept.remember(fingerprint, key, latest, started)
    if (entry := kept.load(key)) is None:
        stage(f"decoding {number:,} {what} in {root}")
        kept.store(key, number, pixel_format, _shown(make(), f"Decoding {what}", number, advance))
        entry = kept.load(key)
    if entry is None:
        raise DataError(f"{kept.folder / key}: it was removed while it was read; start again")
    return entry


def _shown(items: Iterable[T], text: str, total: int, files: Callable[[T], int]) -> Iterator[T]:
    """Pass items on and show a progress bar on standard error where that is a terminal."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task(text, total=total)
        for item in items:
            yield item
            progress.advance(task, files(item))
