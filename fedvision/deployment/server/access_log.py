"""Who reached the public port and who was refused there, for runs to read: ``access.jsonl`` beside the log.

The SuperLink's process writes it, a run's process reads what is added and puts it into its audit log. A line
is ``{"time": UTC, "what": "connected" | "refused", "address", "reason", "client", "key"}``, of which the last
two may be empty. As in the log itself, no flood fills it: the same text is written once a minute, and a full
file is set aside.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

FILE = "access.jsonl"
CONNECTED, REFUSED = "connected", "refused"
_BYTES, _OLD = 2**20, 1
_KEYS = ("address", "reason", "client", "key")
_LONGEST = 500


class AccessHandler(RotatingFileHandler):
    """Writes down the records that carry ``access``.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=_BYTES, backupCount=_OLD, encoding="utf-8", delay=True)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let through what is about access, as often as its filters do."""
        return hasattr(record, "access") and bool(super().filter(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")
        return json.dumps({"time": time, **record.__dict__["access"]})


class AccessReader:
    """Reads what is added to an access log, also while it is set aside and begun anew.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._part = ""
        self.addresses: dict[str, str] = {}
        """By client's name, the address from which it connected last."""
        for _ in self.added():  # from before this run; the addresses stay known
            pass

    def added(self) -> Iterator[dict[str, str]]:
        """Yield the lines that were added since the last call."""
        while True:
            if self._file is None:
                try:
                    self._file = self._path.open(encoding="utf-8", errors="replace")
                except OSError:
                    return
            yield from self._lines(self._file)
            if not self._was_set_aside(self._file):
                return
            yield from self._lines(self._file)
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file, self._part = None, ""

    def _lines(self, file: TextIO) -> Iterator[dict[str, str]]:
        for text in file:
            self._part += text
            if not self._part.endswith("\n"):
                return
            whole, self._part = self._part, ""
            with suppress(ValueError):
                page: Any = json.loads(whole)
                if isinstance(page, dict):
                    line = {key: str(page.get(key, ""))[:_LONGEST] for key in ("what", *_KEYS)}
                    if line["what"] == CONNECTED:
                        self.addresses[line["client"]] = line["address"]
                    yield line

    def _was_set_aside(self, file: TextIO) -> bool:
        try:
            now = self._path.stat()
        except OSError:
            return False
        held = os.fstat(file.fileno())
        return (now.st_ino, now.st_dev) != (held.st_ino, held.st_dev)
