"""Trying again: pauses that grow, lines that come ever more rarely, and an end where one is set.

A link that comes and goes is no success: pauses go on growing until it has held for a while, and what was
not logged when it went is not logged when it comes back.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from fedvision.errors import RunError

log = logging.getLogger("fedvision.deployment")
_LOG_AGAIN_S, _LOG_LONGEST_S = 60.0, 3600.0
"""Seconds between the first two lines on one failure, doubled from line to line up to an hour."""
_SHORTEST_S = 0.25
_HELD_S = 10.0
"""A link that held for so long is good: the next failure is a new one."""


class RetryBackoff:
    """The pauses between attempts, from the first failure to the next success.

    Args:
        limit: Seconds after which it is given up; 0 never gives up.
        longest: Longest pause in seconds.
        clock: Seconds that only rise.
        sleep: Waits.
    """

    def __init__(
        self,
        limit: float = 0.0,
        longest: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limit, self._longest, self._clock, self._sleep = limit, longest, clock, sleep
        self._pause = _SHORTEST_S
        self._since: float | None = None
        self._logged = self._held = float("-inf")
        self._unlogged, self._reported, self._log_pause = 0, False, 0.0

    def success(self) -> bool:
        """Note that it works; return whether there is something to log."""
        first, self._held = self._held == float("-inf"), self._clock()
        if self._reported and self._since is not None:
            log.warning("the server is there again after %.0f s", self._clock() - self._since)
            first = True
        self._since, self._reported = None, False
        return first

    def wait(self, reason: str | Callable[[], str]) -> None:
        """Pause after a failure, a little longer each time.

        Args:
            reason: What is wrong, for the log: at once, after a minute, then ever more rarely; it is
                found out then.

        Raises:
            RunError: The limit is over.
        """
        now = self._clock()
        if self._since is None:
            self._since = now
            if now - self._held >= _HELD_S:
                self._pause, self._log_pause = _SHORTEST_S, 0.0
        waited = now - self._since
        if self._limit and waited >= self._limit:
            raise RunError(
                f"{_text(reason)}; given up after {waited:.0f} s (superlink.retry_for is {self._limit:g})"
            )
        if now - self._logged >= max(self._log_pause, _LOG_AGAIN_S):
            since = f" since {waited:.0f} s" if waited >= 1 else ""
            more = f" ({self._unlogged} more failures since this was last logged)" if self._unlogged else ""
            log.warning("%s; trying again%s%s", _text(reason), since, "" if since else more)
            self._log_pause = min(max(self._log_pause * 2, _LOG_AGAIN_S), _LOG_LONGEST_S)
            self._logged, self._unlogged, self._reported = now, 0, True
        else:
            self._unlogged += 1
        # Clients that lost the same server do not all come back at the same instant.
        self._sleep(self._pause * random.uniform(0.8, 1.2))
        self._pause = min(self._pause * 2, self._longest)


def _text(reason: str | Callable[[], str]) -> str:
    return reason if isinstance(reason, str) else reason()
