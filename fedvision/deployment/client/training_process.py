"""The resident client's process that trains: start it, call it, watch it, replace it."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.errors import ConfigError, FedVisionError

log = logging.getLogger("fedvision.deployment")
_LOOK_S = 0.1
"""Seconds between two looks at the process's memory."""
_GIGABYTE = 10**9


class TaskFailed(FedVisionError):
    """The training process could not do a task; the sentence is the reply."""


class ProcessDied(TaskFailed):
    """The training process was killed or ended by itself in the middle of a task."""


class TrainingProcess:
    """A process that trains, replaced whenever it dies.

    Args:
        client: The machine's own file; its limits hold for the process.
        folder: Where the file lies.
    """

    def __init__(self, client: ClientMachineConfig, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self.generation = 0
        """Counts processes: what was opened in an earlier one must be opened again."""

    def start(self) -> None:
        """Start a process where there is none; it loads its libraries while nobody waits for it."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        command = [sys.executable, "-m", "fedvision.deployment.client.trainer"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is the resident client's to handle.
            start_new_session=True,
        )
        self._pending = b""
        self.generation += 1
        self._send({"client": self._client.to_toml(), "folder": str(self._folder)})

    def call(self, request: Mapping[str, Any], *, limited: bool = True) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            request: As ``fedvision.deployment.client.trainer`` takes it.
            limited: Whether ``time_limit`` holds.

        Raises:
            TaskFailed: The process refused, died (``ProcessDied``), or was ended at a limit; the next request
                meets a new one.
        """
        self.start()
        self._send(request)
        line = self._wait(self._client.time_limit if limited else 0.0)
        answer: dict[str, Any] = json.loads(line)
        if answer.get("broken"):
            self.stop()
        if "error" in answer:
            raise TaskFailed(answer["error"])
        return answer

    def look(self) -> None:
        """Read the client's images, and return a summary.

        Raises:
            ConfigError: They cannot be read.
        """
        try:
            found = self.call({"images": True}, limited=False)
        except TaskFailed as error:
            raise ConfigError(f"{self._client.name}: the images of [data] cannot be used: {error}") from error
        for notice in found["notices"]:
            log.warning("%s", notice)
        log.info("%s has %s", self._client.name, found["images"])

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        self._process = None

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it died; _wait says so
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _wait(self, limit: float) -> bytes:
        assert self._process
        assert self._process.stdout
        began, pipe = time.monotonic(), self._process.stdout.fileno()
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if ready.select(_LOOK_S):
                    read = os.read(pipe, 1 << 16)
                    if not read:
                        self._died()
                    self._pending += read
                self._check(time.monotonic() - began, limit)
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _check(self, seconds: float, limit: float) -> None:
        if limit and seconds > limit:
            self._end(f"it took longer than this client's time_limit of {limit:g} s")
        allowed = self._client.memory_limit * _GIGABYTE
        if allowed and (taken := self._memory()) > allowed:
            self._end(
                f"it took {taken / _GIGABYTE:.1f} GB of memory; this client's memory_limit is "
                f"{self._client.memory_limit:g}"
            )

    def _memory(self) -> int:
        """Return the bytes of memory that the process holds, 0 where the system does not report it."""
        assert self._process
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _died(self) -> None:
        assert self._process
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = "; perhaps its memory ran out" if code == -signal.SIGKILL else ""
        self._end(f"the training process died ({how}{hint})", ProcessDied)

    def _end(self, reason: str, kind: type[TaskFailed] = TaskFailed) -> None:
        self.stop()
        log.warning("%s; a new one is started", reason)
        raise kind(reason)
