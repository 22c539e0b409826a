"""The log of the server's process: one handler for all that is logged in it, which no flood can fill.

Flower and uvicorn bring handlers of their own, with colour codes, without the time or whose call it was, and
one line for every call that somebody makes. Here every line goes through one handler: it bears the time, the
same text is logged once a minute, one place in the code has a limit, and a full file is set aside.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from time import monotonic
from typing import Any

from fedvision.deployment.server.access_log import CONNECTED, FILE, REFUSED, AccessHandler
from fedvision.deployment.server.limits import TokenBuckets
from fedvision.errors import ConfigError

FILE_BYTES, OLD_FILES = 10 * 2**20, 4
"""Size at which a log is set aside, and how many of those are kept."""
_QUIET_S = 60.0
_TEXTS = 10_000
"""Texts that are remembered; beyond them the one that was logged first is forgotten."""
_BURST, _RATE = 1000.0, 0.5
"""Lines at once of one place in the code, and lines a second."""
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


log = logging.getLogger("fedvision.deployment")


def refuse(peer: str, reason: str, detail: str = "", client: str = "", key: str = "") -> None:
    """Log, as ``warn`` does, that a peer on the public port is refused, for audit logs as well.

    Args:
        peer: Its address.
        reason: Why; one of few texts.
        detail: What differs from time to time.
        client: The client whose key the call bears, where that is known.
        key: Fingerprint of that key.
    """
    access = {"what": REFUSED, "address": peer, "reason": f"{reason}{detail}", "client": client, "key": key}
    log.warning(
        "refused %s: %s%s",
        peer,
        reason,
        detail,
        extra={"same": f"refused {peer}: {reason}", "access": access},
    )


def connected(peer: str, client: str, key: str) -> None:
    """Log from which address a client calls for the first time, or since it has another one."""
    access = {"what": CONNECTED, "address": peer, "reason": "", "client": client, "key": key}
    log.info("client %s calls from %s", client, peer, extra={"access": access})


def warn(who: str, what: str, detail: str = "") -> None:
    """Say something of somebody, which a flood of calls writes down once a minute.

    Args:
        who: Of whom.
        what: What; one of few texts.
        detail: What differs from time to time: with another one it is still the same.
    """
    log.warning("%s: %s%s", who, what, detail, extra={"same": f"{who}: {what}"})


class RepeatFilter(logging.Filter):
    """Lets the same text through once a minute, and of one place in the code as much as its bucket holds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._logged: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        self._places = TokenBuckets(_RATE, _BURST, clock)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is written, and add how often it was not."""
        place = f"{record.pathname}:{record.lineno}"
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        key = (place, getattr(record, "same", f"{kind} {record.getMessage()}"))
        now = self._clock()
        then, suppressed = self._logged.pop(key, (float("-inf"), 0))
        allowed = now - then >= _QUIET_S and self._places.take(place)
        self._logged[key] = (now, 0) if allowed else (then, suppressed + 1)
        if len(self._logged) > _TEXTS:
            self._logged.popitem(last=False)
        if allowed and suppressed:
            record.msg = f"{record.getMessage()} ({suppressed} times more since it was last logged)"
            record.args = None
        return allowed


class OneLineFormatter(logging.Formatter):
    """Time and text, without colour codes; what follows a line break is indented, so that none is forged."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return what is written."""
        text = _CODES.sub("", super().format(record)).replace("\r\n", "\n").rstrip("\n")
        text = _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)
        return text.replace("\n", "\n    ")


class RotatingLog(RotatingFileHandler):
    """A file that is set aside when it is full; standard error goes with it, for what no logger writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8")
        self._follow()

    def doRollover(self) -> None:
        """Begin a new file."""
        super().doRollover()
        self._follow()

    def _follow(self) -> None:
        sys.stderr.flush()
        if self.stream:
            os.dup2(self.stream.fileno(), 2)


class PeerLogger(logging.LoggerAdapter[logging.Logger]):
    """uvicorn's logger with the peer whose connection a line is about."""

    def __init__(self, logger: logging.Logger, peer: str) -> None:
        super().__init__(logger)
        self._peer = peer

    @property
    def level(self) -> int:
        """The logger's own, which uvicorn asks for."""
        return self.logger.level

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Put the peer before a text."""
        return f"{self._peer}: {msg}", kwargs


def install(path: Path | None) -> None:
    """Send all that is logged in this process through one handler.

    Args:
        path: A file, or None for standard error.

    Raises:
        ConfigError: The file cannot be written.
    """
    from fedvision.flower import internals

    access: list[logging.Handler] = []
    try:
        handler: logging.Handler = RotatingLog(path) if path else logging.StreamHandler()
        if path:
            access = [AccessHandler(path.with_name(FILE))]
    except OSError as error:
        raise ConfigError(f"--log {path}: it cannot be written: {error.strerror}") from error
    handler.setFormatter(OneLineFormatter())
    for each in (handler, *access):
        each.addFilter(RepeatFilter())
    internals.quiet()
    for name in ("flwr", "uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "httpcore"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # The access log comes last: a filter writes into the text how often it was not logged.
    logging.root.handlers[:] = [handler, *access]
    logging.getLogger("fedvision.deployment").setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a disk that is full is no reason to write more
