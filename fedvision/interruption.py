"""A Ctrl-C that cannot get lost, whatever a library makes of ``KeyboardInterrupt``.

Python raises the interrupt wherever the program happens to be. Inside a C extension that asks an object for
an attribute or its length, the exception can be cleared there and come out as a ``ValueError``, or not at
all; a run would then record a client's failure that never was and go on. So the signal is remembered as well
as raised, and whoever is about to write down what happened asks first.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Remembers the signals that Python turns into ``KeyboardInterrupt``; a context around the work.

    Outside the main thread, and for signals that the program handles in its own way, it changes nothing.
    """

    def __init__(self) -> None:
        self._struck = False
        self._replaced: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler is signal.default_int_handler:
                    self._replaced[number] = handler
                    signal.signal(number, self._strike)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        self._struck = True
        raise KeyboardInterrupt
