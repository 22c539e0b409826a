"""What a person sees while a run goes on: bars on a terminal, lines in a log file, nothing in a test."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from fedvision.formatting import duration, percent, plural
from fedvision.runs.events import kinds
from fedvision.streams import Lenient


class Display(Protocol):
    """Where progress goes."""

    def begin(self, rounds: int, done: int) -> None:
        """Show that so many of the rounds are done."""

    def clients(self, round: int, done: int, total: int) -> None:
        """Show how many clients have answered in a round."""

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Show a finished round."""

    def message(self, text: str) -> None:
        """Show a sentence."""

    def end(self) -> None:
        """Leave the screen in order."""


class Progress:
    """The progress of one run on a terminal or in a log; a context manager.

    Args:
        stream: Where it is shown; stderr by default. What is no terminal gets a line a round.
        clock: Returns seconds; for the time left.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        stream = Lenient.of(stream or sys.stderr)
        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        bar = console.is_terminal and not console.is_dumb_terminal
        self._display: Display = BarDisplay(console) if bar else LineDisplay(stream)
        self._clock = clock
        self._rounds = self._first = 0
        self._began = 0.0
        self._figures: dict[str, str] = {}
        self._served = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.end()

    def start(self, rounds: int, first_round: int) -> None:
        """Begin: ``rounds`` in all, of which those before ``first_round`` are done."""
        self._rounds, self._first, self._began = rounds, first_round, self._clock()
        self._display.begin(rounds, first_round - 1)
        if first_round > rounds:
            self.note("all rounds are done")
        elif first_round > 1:
            self.note(f"going on at round {first_round} of {rounds}")

    def client_done(self, round: int, done: int, total: int) -> None:
        """Count: ``done`` of the round's ``total`` clients have answered or failed."""
        self._display.clients(round, done, total)

    def round_done(self, round: int, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        """Show a round's figures; those that were not measured in it stay as they were measured last.

        Args:
            round: Number of the finished round.
            record: The round's record, as in ``rounds.jsonl``.
            seconds: Seconds by stage, with ``total``.
        """
        self._served |= bool(record.get("server"))
        measured = record.get("server") or record.get("local") or {}
        self._figures |= _figures(
            record, measured if self._served or measured else record.get("received") or {}
        )
        took = seconds.get("total", sum(seconds.values()))
        mean = (self._clock() - self._began) / max(round - self._first + 1, 1)
        left = mean * (self._rounds - round)
        shown = [f"{name} {value}" for name, value in self._figures.items() if value]
        if (clients := record.get("clients")) is not None:
            shown.append(plural(len(clients), "client"))
        shown += kinds(record.get("refused") or ())
        self._display.round(round, self._rounds, "  ".join(shown), duration(took), duration(left))

    def note(self, text: str) -> None:
        """Show a sentence between two rounds."""
        self._display.message(text)


class Silent(Progress):
    """Shows nothing: for Python and tests."""

    def __init__(self) -> None:
        super().__init__()
        self._display = NoDisplay()


class NoDisplay:
    """A display that shows nothing."""

    def begin(self, rounds: int, done: int) -> None:
        """Show nothing."""

    def clients(self, round: int, done: int, total: int) -> None:
        """Show nothing."""

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class LineDisplay(NoDisplay):
    """A line a round, for a log file or a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Write a finished round's line."""
        rest = f"{left} left" if round < rounds else "done"
        width = len(str(rounds))
        self.message(f"round {round:>{width}}/{rounds}  {figures}  {took}, {rest}")

    def message(self, text: str) -> None:
        """Write a line."""
        print(text, file=self._stream, flush=True)


class BarDisplay:
    """Two bars, rounds and the round's clients, with the current figures in a line below them."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<7}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._figures = Text("")
        self._live = Live(Group(self._bars, self._figures), console=console, refresh_per_second=8)
        self._rounds = self._bars.add_task("rounds", total=None, note="")
        self._clients = self._bars.add_task("clients", total=None, note="")

    def begin(self, rounds: int, done: int) -> None:
        """Draw the bars."""
        self._bars.update(self._rounds, total=rounds, completed=done)
        self._live.start()

    def clients(self, round: int, done: int, total: int) -> None:
        """Move the clients' bar."""
        self._bars.update(self._clients, completed=done, total=total)

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Move the rounds' bar."""
        rest = f"{left} left" if round < rounds else "done"
        self._bars.update(self._rounds, completed=round, note=rest)
        self._bars.update(self._clients, note=f"{took} a round")
        self._figures.plain = figures

    def message(self, text: str) -> None:
        """Write a line above the bars."""
        self._live.console.print(Text(text))

    def end(self) -> None:
        """Leave the bars as they are."""
        self._live.stop()


def _figures(record: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, str]:
    """Return a round's figures in text; where they are of an earlier round's model, with its number."""
    shown = {}
    if (loss := record.get("train_loss")) is not None:
        shown["loss"] = f"{loss:.3f}"
    scores = measured.get("scores") or {}
    for key, name in (
        ("mean_ap", "mean AP"),
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced"),
        ("tail", "tail"),
    ):
        if (value := scores.get(key)) is not None and not math.isnan(value):
            shown[name] = percent(value)
    if scores:
        shown["after round"] = str(measured.get("round", ""))
    return shown
