"""The SuperLink as a process of its own: started, watched, started again, and ended with the server."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedvision.deployment.transport.internals_run import RunLink
from fedvision.errors import ConfigError, RunError

log = logging.getLogger("fedvision.deployment")
_PORT_S = 15.0
_NOTICE_AFTER_S = 10.0
"""Seconds of waiting after which it is logged, and then after twice as many each time."""
"""How long the port of a server that was just killed may still be taken."""
_ENDED_S = 10.0


@dataclass(frozen=True, kw_only=True)
class LinkPlace:
    """Where a SuperLink listens and what it keeps."""

    tls: Path | None
    """Folder with ``ca.crt``, ``server.crt``, ``server.key``; None speaks plain text."""
    clients: Path
    """Folder with ``NAME.pub`` of each client that may join."""
    state: Path
    """Folder of its database, log and secret."""
    public: str = "0.0.0.0:8443"
    """``HOST:PORT`` that clients reach."""
    private: str = "127.0.0.1:8000"
    """``HOST:PORT`` of the server's own side."""
    client_certificates: bool = False
    """Demand a certificate of every client (mutual TLS)."""

    @property
    def roots(self) -> Path | None:
        """The authority that signed the server's certificate."""
        return self.tls / "ca.crt" if self.tls else None

    @property
    def objects(self) -> Path:
        """The folder in which it keeps the tensors of messages."""
        return self.state / "superlink.objects"

    @property
    def log(self) -> Path:
        """Its log file; beside it lie those that are full."""
        return self.state / "superlink.log"

    def secret(self) -> bytes:
        """Return what a process must know to be a run's ServerApp; made at the first call.

        Raises:
            ConfigError: The folder cannot be written.
        """
        path = self.state / "secret"
        try:
            self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.state.chmod(0o700)  # who claimed the folder made it for everybody's eyes
            if not path.exists():
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                    file.write(secrets.token_hex(32))
            return path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"--state {self.state}: it cannot be written: {error.strerror}; name another folder"
            ) from error


class SuperlinkProcess:
    """A running SuperLink.

    Args:
        place: Where and what.
        keep: Leave it running when a run is over.
    """

    def __init__(self, place: LinkPlace, *, keep: bool = False) -> None:
        self.place, self.keep = place, keep
        self._process: subprocess.Popen[str] | None = None
        self.notice = ""
        """Its notice at the start, such as that it has to go without its shortcuts."""

    def open(self) -> LinkPlace:
        """Start it and return where it listens.

        Raises:
            ConfigError: It does not start, with its own reason; or another server's listens there.
        """
        port = self.place.private.rpartition(":")[2]
        deadline = time.monotonic() + _PORT_S
        while port != "0" and RunLink(self.place.private, roots=self.place.roots).alive():
            # The one of a server that was killed ends a moment after it. Another server's stays.
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"--private {self.place.private}: another server's SuperLink listens there; give this "
                    "experiment ports of its own with --private and --public, or send it to that server with "
                    "`fedvision submit`"
                )
            time.sleep(0.3)
        self.start()
        why = RunLink(self.place.private, roots=self.place.roots).silence()
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
        self.notice = answer.get("notice", "")
        self.place = replace(self.place, private=answer["private"], public=answer["public"])

    def _try(self) -> dict[str, str] | None:
        """Start the process and return its addresses, or None when it ended."""
        self.place.secret()
        with self.place.log.open("ab") as errors:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout
        values: dict[str, str] = {}
        for line in self._process.stdout:
            key, _, value = line.strip().partition(" ")
            if key == "ready":
                self._process.stdout.close()
                return values
            values[key] = value
        self._process.wait()
        self._close()
        return None

    def _command(self) -> list[str]:
        place = self.place
        module = [
            sys.executable,
            "-m",
            "fedvision.deployment.server.parent_watchdog",
            "fedvision.deployment.server.superlink",
        ]
        tls = ["--tls", str(place.tls)] if place.tls else ["--insecure"]
        mutual = ["--client-certificates"] if place.client_certificates else []
        files = ["--clients", str(place.clients), "--database", str(place.state / "superlink.db")]
        sockets = ["--public", place.public, "--private", place.private]
        process = ["--isolation", "process", "--secret", str(place.state / "secret"), "--log", str(place.log)]
        return [*module, *sockets, *tls, *mutual, *files, *process]

    def _last_line(self) -> str:
        lines = self.place.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("fedvision: ") if lines else "it said nothing"

    def ensure(self) -> bool:
        """Start it again where it died, and return whether it had.

        Raises:
            RunError: It cannot be started again.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        if self._process is None:
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
