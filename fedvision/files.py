"""Writing that survives a power cut: whole files by replacement, lines by append and fsync.

A reader sees a file as it was or as it shall be, never half of it: content goes to a neighbour whose name
ends in ``.part``, reaches the disk, and only then takes the file's name. What a kill leaves behind is such
a neighbour, which every reader ignores.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedvision.errors import RecordError, RunFolderError

PART = ".part"
"""Suffix of a file that is not complete yet."""
_AS_IT_IS = frozenset({int, str, bool, type(None)})


def plain(value: Any) -> Any:
    """Return a value as JSON has it: no NumPy, tuples as lists, and NaN or infinity as None."""
    if type(value) in _AS_IT_IS:  # most values of a large cohort's record; the checks below cost more
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    # Where NumPy is not loaded no value is its, and a command that only shows its help need not load it.
    if (np := sys.modules.get("numpy")) and isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_line(record: Mapping[str, Any]) -> str:
    """Return one line of canonical JSON: keys sorted, no spaces, so that equal facts are equal bytes."""
    text = json.dumps(
        plain(record), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text + "\n"


def json_page(record: Mapping[str, Any]) -> str:
    """Return indented JSON for a file that people open."""
    return json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


_RESUME = "make room or restore access, then go on from the last checkpoint with --resume"


@contextmanager
def recording(what: str, path: Path, remedy: str = _RESUME) -> Iterator[None]:
    """Turn an operating system's refusal into one sentence.

    Args:
        what: What is written, such as ``the model card``.
        path: Its file.
        remedy: What to do; of a run's files the same command goes on.

    Raises:
        RecordError: Something inside the block raised OSError: a full disk, lost permission, a lost mount.
    """
    try:
        yield
    except OSError as error:
        raise RecordError(
            f"{path}: {what} could not be written: {error.strerror or error}; {remedy}"
        ) from error


def encoded(text: str) -> bytes:
    """Return a text as UTF-8; what is no text, a byte of a file's name, becomes an escape that JSON reads."""
    return text.encode(errors="backslashreplace")


def write_new(
    path: Path, data: Iterable[bytes | memoryview], *, mode: int = 0o644, sync: bool = True
) -> None:
    """Write a new file, piece by piece, and wait until the disk has it.

    Raises:
        OSError: The disk is full or refuses; an incomplete file may remain.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        for piece in data:
            _write_all(descriptor, piece)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(
    path: Path,
    data: bytes | str | Iterable[bytes | memoryview],
    *,
    mode: int = 0o644,
    sync: bool = True,
) -> None:
    """Give a file new content at one instant.

    Args:
        path: The file.
        data: A text, bytes or pieces of them.
        mode: Permissions of a new file, as ``os.open`` takes them.
        sync: Wait until the disk has it; without, a power cut may leave the file empty, a kill cannot.

    Raises:
        OSError: The disk is full or refuses; the old content stands and nothing is left beside it.
    """
    part = path.with_name(path.name + PART)
    try:
        whole = encoded(data) if isinstance(data, str) else data
        write_new(part, [whole] if isinstance(whole, bytes) else whole, mode=mode, sync=sync)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add one line at the end of a file and wait until the disk has it.

    A last line that a power cut left without its end is removed: the new one would be glued to it.

    Raises:
        OSError: The disk is full or refuses; the file ends where it ended before.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        if before and os.pread(descriptor, 1, before - 1) != b"\n":
            before = path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(descriptor, before)
        try:
            _write_all(descriptor, encoded(line))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; a last line without its end is a torn one and left out.

    Raises:
        RunFolderError: It cannot be read, or a complete line is no JSON table.
    """
    complete, _, _ = (_text(path) or "").rpartition("\n")
    lines = enumerate(complete.split("\n") if complete else [], start=1)
    return [_table(line, f"{path}, line {number}") for number, line in lines]


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's table, or an empty one where there is no such file.

    Raises:
        RunFolderError: It cannot be read, or is no JSON table.
    """
    text = _text(path)
    return {} if text is None else _table(text, str(path))


def _text(path: Path) -> str | None:
    """Return a file's text, None where there is no such file, or a file in the place of its folder."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunFolderError(f"{path}: it cannot be read: {error.strerror}; restore access to it") from error


def _table(text: str, where: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunFolderError(
            f"{where}: this is no JSON ({error.msg}); the file is damaged, run again"
        ) from error
    if not isinstance(table, dict):
        raise RunFolderError(f"{where}: this is no table of JSON; the file is damaged, run again")
    return table


def sync_folder(path: Path) -> None:
    """Wait until the disk has a folder's names: a rename alone is not durable."""
    if os.name != "posix":  # elsewhere a folder cannot be opened; renames are as durable as they get
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
