"""How an operator ends a run from another terminal: a file in the run folder, which the run itself looks at.

No process is signalled from outside: a process number may be another's by now, and who may write into the
run folder may end the run. ``fedvision stop`` writes the file; the run ends when the round under way is
recorded and its checkpoint is on the disk, or at once, as by Ctrl-C. The file goes away with the run; one
that a killed run left is removed by the next process that takes the folder up.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from fedvision.errors import RunFolderError
from fedvision.files import read_json, replace_file

FILE = "stop.json"
"""The request's name in a run folder: ``{"time": UTC, "now": whether the round under way is given up}``."""
STOPPED = "stopped by the operator"
"""How the events of a run begin to say so."""
_LOOK_S = 0.5


class StoppedByOperator(KeyboardInterrupt):
    """The run ends as it was asked to; everything that handles Ctrl-C handles this."""


def request(path: Path, *, now: bool) -> None:
    """Ask the run in a folder to end.

    Args:
        path: The run folder.
        now: Give the round under way up.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    page = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "now": now}
    try:
        replace_file(path / FILE, json.dumps(page) + "\n")
    except OSError as error:
        raise RunFolderError(f"{path / FILE}: it cannot be written: {error.strerror}") from error


def withdraw(path: Path) -> None:
    """Forget a request that was made of an earlier process."""
    with suppress(OSError):
        (path / FILE).unlink(missing_ok=True)


class StopWatch:
    """Looks for a request while a run goes on; a context around it.

    Args:
        path: The run folder.
        pause: Seconds between two looks.
    """

    def __init__(self, path: Path, pause: float = _LOOK_S) -> None:
        self._path, self._pause = path, pause
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._main = 0
        self.requested = False
        """Whether the run was asked to end."""
        self.now = False
        """Whether it was asked to give the round under way up."""

    def __enter__(self) -> Self:
        # Only there does Python turn a signal into an exception, and only that of this run's thread is ours.
        main = threading.current_thread() is threading.main_thread()
        self._main = threading.get_ident() if main else 0
        self._over.clear()
        self._thread = threading.Thread(target=self._watch, name="stop", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        withdraw(self._path)

    def look(self) -> None:
        """Read the request, if there is one."""
        if (self._path / FILE).exists():
            with suppress(
                RunFolderError
            ):  # whoever wrote something else than a request asked for the milder one
                self.now |= read_json(self._path / FILE).get("now") is True
            self.requested = True

    def check(self) -> None:
        """End the run where it was asked to end: between two rounds.

        Raises:
            StoppedByOperator: It was.
        """
        if not self.requested:
            self.look()
        if self.requested:
            raise StoppedByOperator

    def check_now(self) -> None:
        """End the run in the middle of a round where that was asked for.

        Raises:
            StoppedByOperator: It was.
        """
        if self.now:
            raise StoppedByOperator

    def _watch(self) -> None:
        while not self._over.wait(self._pause):
            self.look()
            if self.now:
                self._interrupt()
                return

    def _interrupt(self) -> None:
        """Do what Ctrl-C does, so that a run that waits for a client hears of it."""
        if self._main and sys.platform != "win32":
            signal.pthread_kill(self._main, signal.SIGINT)
