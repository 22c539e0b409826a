"""The SuperLink as a process of its own: started, watched, started again, and ended with the server."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from fedvision.deployment.server.options import SuperlinkOptions
from fedvision.deployment.transport.internals_run import silence
from fedvision.errors import ConfigError, RunError

log = logging.getLogger("fedvision.deployment")
_PORT_S = 15.0
"""How long the port of a server that was just killed may still be taken."""
_NOTICE_AFTER_S = 10.0
"""Seconds of waiting after which it is logged, and then after twice as many each time."""
_ENDED_S = 10.0
_ANSWER_S = 60.0
"""How long a SuperLink that has just started may take to answer: a machine may be busy with other work."""


class SuperlinkProcess:
    """A running SuperLink.

    Args:
        place: Where and what.
        keep: Leave it running when a run is over.
    """

    def __init__(self, place: SuperlinkOptions, *, keep: bool = False) -> None:
        self.place, self.keep = place, keep
        self._process: subprocess.Popen[str] | None = None
        self.notice = ""
        """Its notice at the start, such as that it has to go without its shortcuts."""

    def open(self) -> SuperlinkOptions:
        """Start it and return where it listens.

        Raises:
            ConfigError: It does not start, with its own reason; or another server's listens there.
        """
        port = self.place.private.rpartition(":")[2]
        deadline = time.monotonic() + _PORT_S
        while port != "0" and not silence(self.place.private, self.place.roots):
            # The one of a server that was killed ends a moment after it. Another server's stays.
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"--private {self.place.private}: another server's SuperLink listens there; give this "
                    "experiment ports of its own with --private and --public, or send it to that server with "
                    "`fedvision submit`"
                )
            time.sleep(0.3)
        self.start()
        why = silence(self.place.private, self.place.roots, within=_ANSWER_S)
        if why:
            self.stop()
            raise ConfigError(
                f"the SuperLink is up, but does not answer on its own side {self.place.private}: {why}; do "
                "ca.crt, server.crt and server.key of --tls belong to each other?"
            )
        log.warning(
            "clients reach the server on %s; its own side is %s", self.place.public, self.place.private
        )
        return self.place

    def start(self) -> None:
        """Start it and wait until it listens; a port that was 0 is settled by that.

        Raises:
            ConfigError: It does not start; the message is its own.
        """
        deadline = time.monotonic() + _PORT_S
        with notice_while(lambda: f"the SuperLink has not started yet; {self.place.log} is its log"):
            while not (answer := self._try()):
                # The one before us ends a moment after its server.
                if "cannot listen there" not in self._last_line() or time.monotonic() > deadline:
                    raise ConfigError(f"the SuperLink did not start: {self._last_line()}")
                time.sleep(0.3)
        self.notice = answer["notice"]
        self.place = replace(self.place, private=answer["private"], public=answer["public"])

    def _try(self) -> dict[str, str] | None:
        """Start the process and return its addresses, or None when it ended."""
        self.place.secret()
        with self.place.log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedvision.deployment.server.superlink", self.place.to_text()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("ready "):
                self._process.stdout.close()
                values: dict[str, str] = json.loads(line.removeprefix("ready "))
                return values
        self._process.wait()
        self._close()
        return None

    def _last_line(self) -> str:
        lines = self.place.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("fedvision: ") if lines else "it said nothing"

    def ensure(self) -> bool:
        """Start it again where it died, and return whether it had.

        Raises:
            RunError: It cannot be started again.
        """
        if self._process is None or self._process.poll() is None:
            return False
        log.warning("the SuperLink ended unexpectedly and is started again")
        self._close()
        try:
            self.start()
        except ConfigError as error:
            raise RunError(str(error)) from error
        return True

    def stop(self) -> None:
        """End it, where it is ours."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_ENDED_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        assert self._process
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._process = None


@contextmanager
def notice_while(what: Callable[[], str]) -> Iterator[None]:
    """Log what is being waited for while the block lasts: after 10 s, and then ever more rarely."""
    over = threading.Event()

    def log_waiting() -> None:
        waited, pause = 0.0, _NOTICE_AFTER_S
        while not over.wait(pause):
            waited, pause = waited + pause, 2 * pause
            log.warning("%s (waiting since %.0f s)", what(), waited)

    thread = threading.Thread(target=log_waiting, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
