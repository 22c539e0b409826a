"""The audit log of a run across machines: who joined, what was refused and why, what the operator did.

One append-only file, ``audit.jsonl``. A line is

::

    {"time": UTC, "round": r, "what": ..., "client": name or null, "by": ..., "previous": SHA-256, ...}

``previous`` is the SHA-256 of the line before, without its line break; of the first line it is empty. So no
line can be changed, removed or put in without every later line being made anew, and whoever has noted the
digest of a line knows that nothing before it was touched. Further keys where they are known: ``key``
(fingerprint), ``address``, ``reason``, ``stage``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedvision.errors import RunFolderError
from fedvision.files import append_line, json_line, recording

FILE = "audit.jsonl"
"""The log's name in a run folder."""


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """What the file of an audit log holds."""

    lines: tuple[dict[str, Any], ...]
    """The lines up to the first that does not fit."""
    digests: tuple[str, ...]
    """The SHA-256 of each of them, hexadecimal."""
    broken: int = 0
    """Number of the first line that does not follow from the one before it; 0 where all do."""


class AuditLog:
    """Adds lines to a run's audit log; one process at a time, which the lock of the run folder sees to.

    Args:
        file: The log; it need not be there yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._previous: str | None = None

    def add(self, what: str, *, round: int, by: str, client: str | None = None, **facts: Any) -> None:
        """Add a line; it is on the disk when this returns.

        Args:
            what: What happened, in a word or two.
            round: In which round.
            by: Who caused it: a client's name, ``"server"``, ``"operator"`` or ``"caller"``.
            client: Whom it is about.
            facts: Further keys; those that are empty are left out.

        Raises:
            RecordError: The disk is full or refuses.
        """
        if self._previous is None:
            self._previous = _last_digest(self._file)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "round": round,
            "what": what,
            "client": client,
            "by": by,
            "previous": self._previous,
            **{key: value for key, value in facts.items() if value not in ("", None)},
        }
        text = json_line(line)
        with recording("the audit log", self._file):
            append_line(self._file, text)
        self._previous = _digest(text.rstrip("\n").encode())


def read_audit(file: Path) -> AuditRecord:
    """Read an audit log and check that each line follows from the one before it.

    A last line that a power cut left without its end is left out.

    Raises:
        RunFolderError: There is none, or it cannot be read.
    """
    try:
        raw = file.read_bytes()
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{file}: there is no audit log; runs across machines write one, simulations do not"
        ) from error
    except OSError as error:
        raise RunFolderError(f"{file}: it cannot be read: {error.strerror}") from error
    lines: list[dict[str, Any]] = []
    digests: list[str] = []
    for number, text in enumerate(raw.split(b"\n")[:-1], start=1):
        line = _parsed(text)
        if line is None or line.get("previous") != (digests[-1] if digests else ""):
            return AuditRecord(lines=tuple(lines), digests=tuple(digests), broken=number)
        lines.append(line)
        digests.append(_digest(text))
    return AuditRecord(lines=tuple(lines), digests=tuple(digests))


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    good = isinstance(line, dict) and {"time", "round", "what", "client", "by"} <= line.keys()
    return line if good else None


def _last_digest(file: Path) -> str:
    """Return the digest of a log's last complete line, empty where there is none."""
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except OSError:
        return ""
    return _digest(lines[-1]) if lines else ""


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
