"""Where the progress of runs is shown: bars on a terminal, lines in a log file, nothing in a test."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from fedvision import log_format
from fedvision.streams import Lenient

Fields = Mapping[str, Any]
NO_FIELDS: Fields = MappingProxyType({})


class Display(Protocol):
    """Where progress goes."""

    def begin(self, rounds: int, done: int) -> None:
        """Show that so many of the rounds are done."""

    def clients(self, round: int, done: int, total: int) -> None:
        """Show how many clients have answered in a round."""

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Show a finished round."""

    def message(self, text: str, fields: Fields = NO_FIELDS) -> None:
        """Show a sentence; ``fields`` say in a JSON log which round and client it is about."""

    def end(self) -> None:
        """Leave the screen in order."""


class NoDisplay:
    """A display that shows nothing."""

    def begin(self, rounds: int, done: int) -> None:
        """Show nothing."""

    def clients(self, round: int, done: int, total: int) -> None:
        """Show nothing."""

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Show nothing."""

    def message(self, text: str, fields: Fields = NO_FIELDS) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class LineDisplay(NoDisplay):
    """A line a round, for a log file or a pipe; every line begins with ``before``."""

    def __init__(self, stream: TextIO, before: str = "") -> None:
        self._stream, self._before = stream, before

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Write a finished round's line."""
        rest = f"{left} left" if round < rounds else "done"
        width = len(str(rounds))
        self.message(f"round {round:>{width}}/{rounds}  {figures}  {took}, {rest}")

    def message(self, text: str, fields: Fields = NO_FIELDS) -> None:
        """Write a line."""
        print(self._before + text, file=self._stream, flush=True)


class JsonDisplay(NoDisplay):
    """A JSON object a round and a sentence, for a log that a program reads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Write a finished round's object."""
        fields = {"round": round, "rounds": rounds, "took": took, "left": left if round < rounds else ""}
        self._write("round", figures, fields)

    def message(self, text: str, fields: Fields = NO_FIELDS) -> None:
        """Write a sentence's object."""
        self._write("note", text, fields)

    def _write(self, kind: str, text: str, fields: Fields) -> None:
        print(log_format.line("info", kind, text, fields), file=self._stream, flush=True)


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

    def message(self, text: str, fields: Fields = NO_FIELDS) -> None:
        """Write a line above the bars."""
        self._live.console.print(Text(text))

    def end(self) -> None:
        """Leave the bars as they are."""
        self._live.stop()


class ParallelDisplays:
    """The displays of runs that go on at the same time; a context manager.

    A terminal gets a bar for each run that goes on, and a line for each that has ended; a log file gets each
    run's lines with its label before them.

    Args:
        stream: Where they are shown; stderr by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = Lenient.of(stream or sys.stderr)
        console = _console(self._stream)
        self._bars: Bars | None = None
        if _takes_bars(console):
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                console=console,
                refresh_per_second=8,
            )

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def of(self, label: str) -> Display:
        """Return the display of a run that begins."""
        if self._bars:
            return _BarOfMany(self._bars, label)
        return LineDisplay(self._stream, f"{label}: ")


class _BarOfMany(NoDisplay):
    """One run's bar among others."""

    def __init__(self, bars: Bars, label: str) -> None:
        self._bars, self._label, self._figures = bars, label, ""
        self._task: TaskID | None = bars.add_task(label, total=None, figures="")

    def begin(self, rounds: int, done: int) -> None:
        """Draw the bar."""
        if self._task is not None:
            self._bars.update(self._task, total=rounds, completed=done)

    def round(self, round: int, rounds: int, figures: str, took: str, left: str) -> None:
        """Move the bar."""
        self._figures = figures
        if self._task is not None:
            self._bars.update(self._task, completed=round, figures=figures)

    def message(self, text: str, fields: Fields = NO_FIELDS) -> None:
        """Write a line above the bars."""
        self._bars.console.print(Text(f"{self._label}: {text}"))

    def end(self) -> None:
        """Replace the bar by a line above the others."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
            if self._figures:
                self.message(self._figures)


def display_on(stream: TextIO | None = None) -> Display:
    """Return the display of one run on a stream; stderr by default."""
    stream = Lenient.of(stream or sys.stderr)
    if log_format.is_json():
        return JsonDisplay(stream)
    console = _console(stream)
    return BarDisplay(console) if _takes_bars(console) else LineDisplay(stream)


def _console(stream: TextIO) -> Console:
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _takes_bars(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal
