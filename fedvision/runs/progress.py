"""What a person sees while a run goes on: its rounds, their figures and the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from fedvision.formatting import duration, percent, plural
from fedvision.runs.displays import NO_FIELDS, Display, Fields, NoDisplay, display_on
from fedvision.runs.events import kinds


class Progress:
    """The progress of one run on a terminal or in a log; a context manager.

    Args:
        stream: Where it is shown; stderr by default. What is no terminal gets a line a round.
        clock: Returns seconds; for the time left.
        display: Shows it in place of the stream.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        display: Display | None = None,
    ) -> None:
        self._display = display or display_on(stream)
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

    def note(self, text: str, fields: Fields = NO_FIELDS) -> None:
        """Show a sentence between two rounds; ``fields`` say which round and client it is about."""
        self._display.message(text, fields)


class Silent(Progress):
    """Shows nothing: for Python and tests."""

    def __init__(self) -> None:
        super().__init__(display=NoDisplay())


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
