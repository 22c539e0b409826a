"""Several simulated runs at the same time, each in a process of its own.

The processes are forked from a server process that has imported the libraries once and has no threads
(``multiprocessing``'s "forkserver"), so that a run begins in a tenth of a second. Each builds its experiment
itself and writes its run folder; what it reports on the way comes through a pipe. A run whose parent process
is gone ends as if it were interrupted.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fedvision import registry, streams
from fedvision.config import ExperimentConfig
from fedvision.errors import FedVisionError, RunError
from fedvision.interruption import Interruption, deafen, treat_termination_as_ctrl_c
from fedvision.libraries import prepare_process
from fedvision.runs.displays import NO_FIELDS, Display, Fields, NoDisplay, ParallelDisplays

_PRELOADED = ("fedvision.simulation", "fedvision.flower.strategy", "fedvision.reporting.html")
_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_PATIENCE = 30.0
"""Seconds in which interrupted runs may write how far they came."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that is to be made in a process of its own."""

    label: str
    """Names it on the display."""
    config: ExperimentConfig
    """The experiment."""
    out: Path
    """The run folder."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """As ``simulate`` takes them."""


def prepare() -> None:
    """Let the server process begin to import what every run needs, in the background."""
    prepare_process()
    if _FORKS:
        from multiprocessing import forkserver

        _context().set_forkserver_preload(list(_PRELOADED))
        # An interrupt during its imports would end it with a traceback; the runs let signals in again.
        with _blocked():
            forkserver.ensure_running()


def run_all(
    runs: Sequence[PlannedRun], jobs: int, displays: ParallelDisplays | None = None
) -> dict[str, FedVisionError | None]:
    """Make the runs, at most ``jobs`` of them at a time, in their order.

    Args:
        runs: The runs; no two with one label.
        jobs: Processes, >= 1.
        displays: Show the progress; nothing is shown without.

    Returns:
        By label: why the run failed (``RunError``), None where it reached its end.

    Raises:
        ConfigError: A run could not begin, as its folder is another's; those that had begun have ended.
        KeyboardInterrupt: A person stopped them; every run folder can be continued.
    """
    prepare()
    outcomes: dict[str, FedVisionError | None] = {}
    waiting, running = list(reversed(runs)), list[_Running]()
    with Interruption() as interruption:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop()
                    running.append(_Running(run, displays.of(run.label) if displays else NoDisplay()))
                interruption.check()
                for one in _ready(running):
                    if one.receive():
                        continue
                    running.remove(one)
                    outcomes[one.run.label] = one.outcome()
                    if not isinstance(outcomes[one.run.label], RunError | None):
                        waiting.clear()
        finally:
            for one in running:
                one.interrupt()
            for one in running:
                one.end()
    for error in outcomes.values():
        if not isinstance(error, RunError | None):
            raise error
    return {run.label: outcomes[run.label] for run in runs}


class _Running:
    """A run's process, seen from its parent."""

    def __init__(self, run: PlannedRun, display: Display) -> None:
        self.run, self._display = run, display
        self.messages, theirs = connection.Pipe(duplex=False)
        self._error: FedVisionError | KeyboardInterrupt | None = None
        self._ended = False
        self._process: BaseProcess = _context().Process(
            target=_make_run, args=(run, registry.allowed_folder(), theirs), name=run.label
        )
        with _blocked():
            self._process.start()
        theirs.close()

    def receive(self) -> bool:
        """Show what has arrived; return False once nothing more will."""
        try:
            what, arguments = self.messages.recv()
        except (EOFError, OSError):
            return False
        if what == "ended":
            self._error, self._ended = arguments, True
        else:
            getattr(self._display, what)(*arguments)
        return True

    def outcome(self) -> FedVisionError | None:
        """Return why the ended run failed.

        Raises:
            KeyboardInterrupt: It was interrupted.
        """
        self.end()
        if isinstance(self._error, KeyboardInterrupt):
            raise self._error
        if self._ended:
            return self._error
        code = self._process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return RunError(
            f"its process {how}; --resume goes on from the last round, and fewer --jobs take less memory"
        )

    def interrupt(self) -> None:
        """Have the run write how far it came, and end."""
        if self._process.pid is not None and self._process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Wait until the process has ended; kill one that does not."""
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._display.end()
        self.messages.close()


def _ready(running: Sequence[_Running]) -> list[_Running]:
    """Wait for what runs report, and return those that did."""
    found = connection.wait([one.messages for one in running])
    return [one for one in running if one.messages in found]


class _SentDisplay:
    """A run's display, shown by its parent process."""

    def __init__(self, parent: connection.Connection) -> None:
        self._parent = parent

    def begin(self, rounds: int, done: int) -> None:
        """Send it on."""
        self._send("begin", rounds, done)

    def clients(self, round: int, done: int, total: int) -> None:
        """Send nothing: a bar shows one run's clients, not those of several."""

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Send it on."""
        self._send("round", round, rounds, figures, took, left)

    def message(self, text: str, fields: Fields = NO_FIELDS) -> None:
        """Send it on."""
        self._send("message", text)

    def end(self) -> None:
        """Send nothing: the parent knows when a run has ended."""

    def _send(self, what: str, *arguments: int | str) -> None:
        try:
            self._parent.send((what, arguments))
        except OSError:  # the parent process is gone
            raise KeyboardInterrupt from None


def _make_run(run: PlannedRun, plugins: Path | None, parent: connection.Connection) -> None:
    """Make a run in this process, which exists for it alone."""
    streams.prepare()
    # A terminal's Ctrl-C reaches the parent process too, which interrupts each run once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    treat_termination_as_ctrl_c()
    _let_in()
    error: FedVisionError | KeyboardInterrupt | None = None
    try:
        from fedvision.api import simulate
        from fedvision.runs.progress import Progress

        if plugins is not None:
            registry.allow_folder(plugins)
        progress = Progress(display=_SentDisplay(parent))
        simulate(run.config, out=run.out, progress=progress, **run.options)
    except FedVisionError as raised:
        error = raised
    except KeyboardInterrupt:
        error = KeyboardInterrupt()
    deafen()
    with suppress(OSError):
        parent.send(("ended", error))
    parent.close()


def _context() -> Any:  # a ForkServerContext or a SpawnContext, which have no common type with a Process
    return multiprocessing.get_context("forkserver" if _FORKS else "spawn")


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _let_in() -> None:
    """Let in the signals that were held back when this process was started."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextmanager
def _blocked() -> Iterator[None]:
    """Hold interrupts back in this thread, and in the processes that it starts meanwhile."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
