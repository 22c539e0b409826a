"""The page on a run beside the server that runs it: a process of its own, which ends with the server."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedvision.errors import ConfigError

if TYPE_CHECKING:
    from fedvision.watching.serve import WatchOptions

_ENDED_S = 5.0


class WatchProcess:
    """A context in which the page is up.

    If its process dies the run goes on without a page.

    Args:
        options: Which run, and where the page is.
    """

    address = ""
    """Where the page is, with its token where one was made."""

    def __init__(self, options: WatchOptions) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start it and wait until it can be opened.

        Raises:
            ConfigError: It does not start, with its own reason.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedvision.watching.serve", self._options.to_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the run; the page shows how it ends
        )
        assert self._process.stdout
        word, _, rest = self._process.stdout.readline().strip().partition(" ")
        if word != "ready":
            self.stop()
            raise ConfigError(f"--watch: {rest or 'the page did not start'}")
        self.address = rest
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_ENDED_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
