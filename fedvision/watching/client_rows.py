"""The clients of a run as rows of a table: all of few, of many those that a person should look at first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedvision.runs.member_register import JOINED, Member
from fedvision.watching.followed_run import Snapshot
from fedvision.watching.round_tallies import ClientTally

ALL, MOST = 24, 16
"""Up to so many clients, all are shown; of more, so many."""


@dataclass(frozen=True, kw_only=True)
class ClientRow:
    """One client."""

    client: int
    """Its number."""
    name: str
    """Its name, or its number where it has none."""
    images: int | None
    """Training images; None where they are not known of it alone."""
    tally: ClientTally
    """What the rounds tell of it."""
    status: str
    """``"here"``, ``"late"``, ``"left"``, ``"refused"``, ``"revoked"``; simulated ones are late or empty."""
    note: str
    """What is worth knowing of it; empty where nothing is."""


def client_rows(found: Snapshot) -> list[ClientRow]:
    """Return all clients by number: members, or in a simulation those that are listed or took part."""
    members = {one.member.client: one.member for one in found.facts.participants}
    images = _images(found)
    busy = set(found.tallies.last.get("busy") or ())
    numbers: Iterable[int] = members or sorted({*images, *found.clients})
    rows = []
    for number in numbers:
        member, tally = members.get(number), found.clients.get(number) or ClientTally()
        name = member.name if member else found.facts.name(number)
        status = _status(member, number in busy)
        known = images.get(number) if member is None else member.images
        note = (member.reason if member else "") or tally.reason
        rows.append(ClientRow(client=number, name=name, images=known, tally=tally, status=status, note=note))
    return rows


def noteworthy(rows: Sequence[ClientRow]) -> list[ClientRow]:
    """Return all rows of few; of many those with trouble, then those with the lowest scores."""
    if len(rows) <= ALL:
        return list(rows)
    return sorted(rows, key=_interest)[:MOST]


def matching(rows: Sequence[ClientRow], text: str) -> list[ClientRow]:
    """Return the clients whose name, or number, has a text in it; those that begin with it come first."""
    wanted = text.strip().casefold()
    found = [row for row in rows if wanted in row.name.casefold() or wanted == str(row.client)]
    return sorted(found, key=lambda row: not row.name.casefold().startswith(wanted))


def _interest(row: ClientRow) -> tuple[int, float, int]:
    trouble = ("refused", "revoked", "left", "late", "here", "")
    place = trouble.index(row.status)
    if place >= trouble.index("here") and row.note:
        place = trouble.index("late")
    return place, row.tally.score if row.tally.score is not None else 2.0, row.client


def _status(member: Member | None, busy: bool) -> str:
    if member is None or member.status == JOINED:
        return "late" if busy else "here" if member else ""
    return member.status


def _images(found: Snapshot) -> dict[int, int]:
    """Return the training images of each client that is listed."""
    facts = found.facts
    if facts.several_labels or facts.own_counts:
        return {}  # class counts do not add up to images
    shown = facts.split.get("shown") or range(len(facts.split.get("counts") or ()))
    return dict(zip(map(int, shown), facts.counts.sum(1).tolist(), strict=False)) if len(facts.counts) else {}
