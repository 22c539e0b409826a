"""Trying again: pauses that grow, one line a minute, and an end where one is set."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from fedvision.errors import RunError

log = logging.getLogger("fedvision.deploy")
_SAY_EVERY_S = 60.0


class Patience:
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
        self._pause = 0.25
        self._since: float | None = None
        self._said = float("-inf")

    def success(self) -> None:
        """Forget the failures."""
        if self._since is not None:
            log.warning("the server is there again after %.0f s", self._clock() - self._since)
        self._since, self._pause, self._said = None, 0.25, float("-inf")

    def wait(self, reason: str | Callable[[], str]) -> None:
        """Pause after a failure, a little longer each time.

        Args:
            reason: What is wrong, for the log: at once, then once a minute; it is found out then.

        Raises:
            RunError: The limit is over.
        """
        now = self._clock()
        self._since = now if self._since is None else self._since
        waited = now - self._since
        if self._limit and waited >= self._limit:
            raise RunError(
                f"{_said(reason)}; given up after {waited:.0f} s (superlink.retry_for is {self._limit:g})"
            )
        if now - self._said >= _SAY_EVERY_S:
            log.warning("%s; trying again%s", _said(reason), f" since {waited:.0f} s" if waited >= 1 else "")
            self._said = now
        # Clients that lost the same server do not all come back at the same instant.
        self._sleep(self._pause * random.uniform(0.8, 1.2))
        self._pause = min(self._pause * 2, self._longest)


def _said(reason: str | Callable[[], str]) -> str:
    return reason if isinstance(reason, str) else reason()
