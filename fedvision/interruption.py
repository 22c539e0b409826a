"""A Ctrl-C that cannot get lost, whatever a library makes of ``KeyboardInterrupt``.

Python raises the interrupt wherever the program happens to be. Inside a C extension that asks an object for
an attribute or its length, the exception can be cleared there and come out as a ``ValueError``, or not at
all; a run would then record a client's failure that never was and go on. So the signal is remembered as well
as raised, and whoever is about to write down what happened asks first.

People press Ctrl-C twice, and a second interrupt in the middle of the cleaning up would leave workers behind
and the folder without a summary: for a while after the first one, further ones are noted and not raised.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10.0
"""Seconds in which what was interrupted may clean up; after them an interrupt is raised again."""


def treat_termination_as_ctrl_c() -> None:
    """Let SIGTERM end this process as Ctrl-C does: everything is closed, nobody waits for it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def deafen() -> None:
    """Ignore interrupts from here on: the process has cleaned up and ends with an exit code of its own."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interruption:
    """Remembers the signals that Python turns into ``KeyboardInterrupt``; a context around the work.

    Outside the main thread, and for signals that the program handles in its own way, it changes nothing. One
    that is entered already may be entered again, around less of the work.
    """

    def __init__(self) -> None:
        self._struck = False
        self._since = -math.inf
        self._depth = 0
        self._replaced: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler is signal.default_int_handler:
                    self._replaced[number] = handler
                    signal.signal(number, self._strike)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._replaced.items():
                signal.signal(number, handler)
            self._replaced.clear()
        if isinstance(error, Exception):
            self.check(error)

    def check(self, cause: Exception | None = None) -> None:
        """Raise the interrupt again if there was one.

        Args:
            cause: What a library made of it.

        Raises:
            KeyboardInterrupt: The person wishes to stop.
        """
        if self._struck:
            raise KeyboardInterrupt from cause

    def _strike(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._since < GRACE:
            return
        self._struck, self._since = True, time.monotonic()
        raise KeyboardInterrupt
