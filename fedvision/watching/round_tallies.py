"""What is kept of a run's rounds while it is watched: each record once reduced, and sums over all of them.

A record of a thousand clients has tens of thousands of numbers. What the curves need of it are a few; what
the tables need are sums by client. So a page that is open for days takes memory for the clients and for a
line of numbers a round, and a new round costs what that round holds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fedvision.reporting.participation import used_in, work_that_failed
from fedvision.runs.events import Event, round_events
from fedvision.runs.records import in_their_rounds

Record = dict[str, Any]
_KEPT = (
    *("round", "examples", "lr", "train_loss", "bytes", "stopped_early", "changed", "strategy"),
    *("server", "local", "personal", "received", "calibration"),
)
_OF_A_VIEW = ("loss", "scores", "spread", "measured_by", "withheld", "round")
_LARGE = ("confusion", "labels")
"""What is kept of the newest measurement alone."""
EVENTS = 1000
"""The newest events that are kept."""


@dataclass
class ClientTally:
    """What the rounds tell of one client."""

    used: int = 0
    """Rounds that used an answer of it."""
    failed: int = 0
    """Rounds in which it was to train and no usable answer came."""
    last: int = 0
    """The last round that used an answer; 0 before that."""
    reason: str = ""
    """Why the last answer that was missing or refused was not used; empty where a later one was."""
    score: float | None = None
    """Its share of images named rightly, or what else clients are compared by, as it was measured last."""


@dataclass
class RoundTallies:
    """All rounds of a run that were recorded so far."""

    names: dict[int, str] = field(default_factory=dict)
    """Of clients; what is taken from then on is told with them."""
    buffered: bool = False
    """Whether late answers are what the run lives on."""
    clients: dict[int, ClientTally] = field(default_factory=dict)
    """By number."""
    last: Record = field(default_factory=dict)
    """The last record as it was written."""
    unused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers that were not used, by kind and stage."""
    late: Counter[str] = field(default_factory=Counter)
    """Late answers: ``"used"`` and ``"discarded"``."""
    answers: int = 0
    """Answers that were used."""
    events: list[Event] = field(default_factory=list)
    """What happened in the rounds, the newest last."""
    forgotten: int = 0
    """Older events than these."""
    _records: list[Record] = field(default_factory=list)
    _large: dict[str, Record] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Take one more round.

        Raises:
            KeyError: The record has no number; nothing was taken.
        """
        number, self.last = int(record["round"]), record
        for client in used_in(record):
            one = self._client(client)
            one.used, one.last, one.reason = one.used + 1, number, ""
        for client, reason in work_that_failed(record).items():
            one = self._client(client)
            one.failed, one.reason = one.failed + 1, reason
        self.answers += len(record.get("clients") or ())
        self.unused.update(
            (item.get("kind", "unused"), item["stage"]) for item in record.get("refused") or ()
        )
        self.late.update("used" if item["used"] else "discarded" for item in record.get("late") or ())
        for view in ("local", "received"):
            for key, score in _by_client(record.get(view) or {})[1].items():
                self._client(int(key)).score = score
        self.events += round_events(record, self.names, buffered=self.buffered)
        self.forgotten += max(0, len(self.events) - EVENTS)
        del self.events[:-EVENTS]
        self._records.append(self._reduced(record))

    @property
    def records(self) -> list[Record]:
        """The rounds, reduced, each with what was measured of the model after it."""
        return in_their_rounds(self._records)

    def _client(self, client: int) -> ClientTally:
        return self.clients.setdefault(client, ClientTally())

    def _reduced(self, record: Record) -> Record:
        kept = {key: record[key] for key in _KEPT if key in record}
        for view in ("server", "local", "personal", "received"):
            if facts := record.get(view):
                kept[view] = self._reduced_view(facts, "local" if view == "received" else view)
        return kept

    def _reduced_view(self, facts: Record, view: str) -> Record:
        key, values = _by_client(facts)
        found = [value for value in values.values() if value is not None]
        # Three clients that have the lowest, the median and the highest value draw the same band.
        band = {"0": min(found), "1": median(found), "2": max(found)} if found else {}
        kept = {one: facts[one] for one in (*_OF_A_VIEW, *_LARGE) if one in facts}
        kept |= {key: band} if key else {}
        self._forget_large(kept, view)
        if own := facts.get("personal"):  # beside what was measured of the model that was received
            kept["personal"] = self._reduced_view(own, "personal")
        return kept

    def _forget_large(self, facts: Record, view: str) -> None:
        if not any(key in facts for key in _LARGE):
            return
        for key in _LARGE:
            self._large.get(view, {}).pop(key, None)
        self._large[view] = facts


def _by_client(facts: Record) -> tuple[str, dict[str, float | None]]:
    """Return by which score clients are compared, with its values by client; empty where they share none."""
    scores = facts.get("scores") or {}
    tables = [(key, value) for key, value in facts.items() if isinstance(value, dict)]
    return next(((key, value) for key, value in tables if key in scores), ("", {}))


def thinned(records: list[Record], most: int) -> list[Record]:
    """Return at most about twice ``most`` records for curves: evenly spread ones and measured ones.

    A run may measure every tenth round: where every seventh record was kept, nearly nothing would be left of
    what was measured.
    """
    measured = [record for record in records if record.get("server") or record.get("local")]
    kept = {id(record) for record in [*_even(records, most), *_even(measured, most)]}
    return [record for record in records if id(record) in kept]


def _even(records: list[Record], most: int) -> list[Record]:
    if len(records) <= most:
        return records
    step = (len(records) - 1) / (most - 1)
    return [records[round(place * step)] for place in range(most)]
