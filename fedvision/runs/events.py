"""What happened in a run beside training, by round: who was missed, refused, late, set aside; what broke.

A round's record holds the facts; ``events.jsonl`` the notices while the run went on, which depends on the
day and not on the experiment: a server that was started again, a machine that left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from fedvision.formatting import plural
from fedvision.types import Rejection

BEGAN = "the run began"
"""The first line of ``events.jsonl``."""
_STAGES = {"training": "", "evaluation": "measuring: "}


class Event(NamedTuple):
    """One thing that happened."""

    round: int
    """In which round."""
    client: str
    """To which client; empty where it was none's affair."""
    what: str
    """One sentence without its subject."""


def named(client: int, names: Mapping[int, str]) -> str:
    """Return a client as people know it: ``"south (1)"``, or its number."""
    return f"{names[client]} ({client})" if client in names else str(client)


def round_events(
    record: Mapping[str, Any], names: Mapping[int, str], *, buffered: bool = False
) -> list[Event]:
    """Return the events of a round's record.

    Args:
        record: As in ``rounds.jsonl``.
        names: Of clients, where they have some.
        buffered: Whether late answers are what the run lives on; those that were used are then no events.
    """
    found = [(item["client"], _unused(item)) for item in record.get("refused") or ()]
    found += [
        (item["client"], _late(item)) for item in record.get("late") or () if not (buffered and item["used"])
    ]
    found += [
        (item["client"], f"set aside, not selected again: {item['reason']}")
        for item in record.get("set_aside") or ()
    ]
    events = [Event(record["round"], named(client, names), what) for client, what in found]
    if query := record.get("unanswered"):
        what = f"no client answered the strategy's query {query!r}: the model is as training left it"
        events.append(Event(record["round"], "", what))
    if not record.get("changed", True):
        answers = plural(len(record.get("clients") or ()), "usable answer")
        events.append(Event(record["round"], "", f"the model stayed as it was: {answers}"))
    return events


def all_events(
    records: Sequence[Mapping[str, Any]],
    register_lines: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    *,
    buffered: bool = False,
) -> list[Event]:
    """Return all events of a run by round; notices stand before the events of a round's record.

    Args:
        records: The rounds.
        register_lines: The lines of ``events.jsonl``.
        names: Of clients.
        buffered: As ``round_events`` takes it.
    """
    events = [
        Event(line["round"], "" if line.get("client") is None else str(line["client"]), line["what"])
        for line in register_lines
        if line["what"] != BEGAN
    ]
    for record in records:
        events += round_events(record, names, buffered=buffered)
    return sorted(events, key=lambda event: event.round)


def shown(events: Sequence[Event], most: int = 5) -> list[str]:
    """Return events as lines for a screen, no more than a few."""
    lines = [
        f"round {event.round}: " + (f"client {event.client}: " if event.client else "") + event.what
        for event in events[:most]
    ]
    rest = len(events) - most
    return [*lines, f"round {events[0].round}: {rest} more of this kind"] if rest > 0 else lines


def kinds(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how many replies were not used, by kind: ``["1 refused", "2 failed"]``.

    Args:
        items: As in a record's ``refused``.
    """
    counts = Counter(item.get("kind", "unused") for item in items)  # those of earlier versions have none
    return [f"{counts[kind]} {kind}" for kind in get_args(Rejection) if counts[kind]]


def _unused(item: Mapping[str, Any]) -> str:
    stage = _STAGES.get(item["stage"], f"{item['stage']}: ")
    kind = f"{item['kind']}: " if item.get("kind") in ("refused", "declined") else ""
    return f"{stage}{kind}{item['reason']}"


def _late(item: Mapping[str, Any]) -> str:
    request = f"requested in round {item['requested']}"
    if item["used"]:
        return f"{request}, answered late, used with weight {item['weight']:.2f}"
    return f"{request}: {item['reason']}"
