"""How what a process says on standard error is written: as text, or as one JSON object a line.

An object has ``time`` (UTC, ISO 8601), ``level`` (``debug`` to ``critical``), ``kind`` (``log``, ``stage``,
``note``, ``round``, ``error``, ...) and ``message``; further fields, such as ``round`` and ``client``, where
they are known. Processes that this one starts write in the same format.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

FORMATS = ("text", "json")
_VARIABLE = "FEDVISION_LOG_FORMAT"
_fields: dict[str, Any] = {}
_replaced: list[logging.Handler] = []
"""The root's handlers from before JSON was written."""


def use(name: str, **fields: Any) -> None:
    """Write in a format from now on; so do the processes that this one starts.

    Args:
        name: One of ``FORMATS``.
        fields: Stand in every JSON object of this process, such as ``client="north"``.
    """
    _fields.clear()
    if name == "json":
        _fields.update(fields)
        if sys.excepthook is not _report:
            _replaced[:] = logging.root.handlers
        os.environ[_VARIABLE] = name
        sys.excepthook = _report
        logging.root.handlers[:] = [handler()]
        adopt("fedvision.deployment")
        logging.captureWarnings(True)
    elif is_json():
        del os.environ[_VARIABLE]
        sys.excepthook = sys.__excepthook__
        logging.root.handlers[:] = _replaced
        logging.captureWarnings(False)


def is_json() -> bool:
    """Return whether JSON is written, here or because the process that started this one said so."""
    return os.environ.get(_VARIABLE) == "json"


def adopt(*loggers: str) -> None:
    """Send what libraries log through the root's handler where JSON is written: they bring their own."""
    for name in loggers if is_json() else ():
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def handler() -> logging.Handler:
    """Return what writes log records on standard error, in the format of this process."""
    made = logging.StreamHandler(sys.stderr)
    made.setFormatter(JsonFormatter() if is_json() else logging.Formatter("%(asctime)s %(message)s"))
    return made


def line(level: str, kind: str, message: str, fields: Mapping[str, Any] | None = None) -> str:
    """Return one JSON object; whatever stands in it, it is one line of ASCII.

    Args:
        level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
        kind: What it is about.
        message: For a person.
        fields: Further ones; those that are None or empty are left out.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    more = {key: value for key, value in {**_fields, **(fields or {})}.items() if value not in (None, "")}
    return json.dumps(
        {"time": time, "level": level, "kind": kind, "message": message.strip(), **more}, default=str
    )


class JsonFormatter(logging.Formatter):
    """Writes a log record as ``line`` does; its time is that of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        more: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[0]:
            more["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        page = json.loads(line(record.levelname.lower(), "log", record.getMessage(), more))
        page["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps(page)


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write an exception that nobody caught."""
    fields = {"traceback": "".join(traceback.format_exception(kind, error, trace))}
    print(line("critical", "error", f"{kind.__name__}: {error}", fields), file=sys.stderr, flush=True)
