"""The run's sign of life to its SuperLink, and how long none was given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from fedvision.deployment.transport.internals_message_objects import LinkDown, LinkRefused

if TYPE_CHECKING:
    from fedvision.deployment.transport.internals_run import RunLink

BEAT_S = 10.0
LOST_S = 45.0
"""A silence after which a SuperLink may have given the run up: Flower does so after a minute."""


class Heartbeat:
    """Send the SuperLink heartbeats of the run's server; a context around the rounds.

    Of the two ``clocks`` one counts while the process is stopped, the other while its machine sleeps, too.
    """

    def __init__(
        self, link: RunLink, clocks: tuple[Callable[[], float], ...] = (time.monotonic, time.time)
    ) -> None:
        self._link, self._clocks = link, clocks
        self._last = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=BEAT_S)

    @property
    def silence(self) -> float:
        """Seconds since this process's last heartbeat reached the SuperLink."""
        return max(now - then for now, then in zip(self._now(), self._last, strict=True))

    def once(self) -> None:
        """Give one sign of life."""
        with suppress(LinkDown, LinkRefused):
            if self._link.beat():  # without success the run was given up, which ends no silence
                self._last = self._now()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self.once()

    def _now(self) -> tuple[float, ...]:
        return tuple(clock() for clock in self._clocks)
