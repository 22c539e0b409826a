"""Files that somebody else writes, read as they grow: no lock, no write, no event of the operating system.

A look costs one ``stat`` where nothing has changed. What was read once is not read again, unless the file was
cut back or replaced, as a run does that goes on from an earlier checkpoint; then all of it is read anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from fedvision.errors import MALFORMED, RunFolderError
from fedvision.files import read_json

Identity: TypeAlias = tuple[int, int, int] | None
_KNOWN_BY = 512
"""A file is taken for the same one where so many bytes before the place that was reached are the same."""


def identity(path: Path) -> Identity:
    """Return what changes when a file does: inode, size and time; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class FollowedFile:
    """A file that is replaced as a whole.

    Args:
        path: The file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ""
        """What in it cannot be read; empty where all can. It is said until the file is another one."""
        self._seen: Identity = None

    def changed(self) -> bool:
        """Return whether it is another one than at the last call; a file that never was is not."""
        last, self._seen = self._seen, identity(self.path)
        return last != self._seen


class FollowedTable(FollowedFile):
    """A JSON file with one table, which is empty as long as there is no file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.table: dict[str, Any] = {}

    def poll(self) -> bool:
        """Read it where it has changed, and return whether it has; what is damaged counts as not there."""
        if not self.changed():
            return False
        self.table, self.damage = {}, ""
        try:
            self.table = read_json(self.path)
        except RunFolderError as error:
            self.damage = str(error)
        return True


class FollowedLines(FollowedFile):
    """A file of JSON lines that grows; a line that is half written is waited for.

    Args:
        path: The file; it need not be there.
        take: Is called with the table of each new line; a KeyError, TypeError, ValueError or AttributeError
            says that it is none of such a file.
        reset: Is called before lines that were taken are taken anew, or are gone.
    """

    def __init__(self, path: Path, take: Callable[[dict[str, Any]], None], reset: Callable[[], None]) -> None:
        super().__init__(path)
        self._take, self._reset = take, reset
        self._inode, self._place, self._before, self._lines = 0, 0, b"", 0

    def poll(self) -> bool:
        """Take the lines that are new, and return whether anything has changed; damaged ones are left out."""
        if not self.changed():
            return False
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:
            return self._begin_anew()
        try:
            lost = not self._is_the_same(descriptor) and self._begin_anew()
            new = _read(descriptor, self._place)
        finally:
            os.close(descriptor)
        complete = new[: new.rfind(b"\n") + 1]
        for line in complete.splitlines():
            self._lines += 1
            self._take_line(line)
        self._place += len(complete)
        self._before = (self._before + complete)[-_KNOWN_BY:]
        return lost or bool(complete)

    def _is_the_same(self, descriptor: int) -> bool:
        found = os.fstat(descriptor)
        inode, self._inode = self._inode, found.st_ino
        if inode != found.st_ino or found.st_size < self._place:
            return False
        return os.pread(descriptor, len(self._before), self._place - len(self._before)) == self._before

    def _begin_anew(self) -> bool:
        had = self._place > 0
        self._place, self._before, self._lines, self.damage = 0, b"", 0, ""
        if had:
            self._reset()
        return had

    def _take_line(self, line: bytes) -> None:
        try:
            table = json.loads(line)
            if not isinstance(table, dict):
                raise TypeError("no table of JSON")
            self._take(table)
        except MALFORMED as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            self.damage = self.damage or f"{self.path}, line {self._lines}: this line cannot be read: {what}"


def _read(descriptor: int, place: int) -> bytes:
    pieces = []
    while piece := os.pread(descriptor, 1 << 20, place):
        pieces.append(piece)
        place += len(piece)
    return b"".join(pieces)
