"""Who took part in a run across machines: the register's members with their rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedvision.runs.member_register import DECLINED, REFUSED, Member, MemberRegister


@dataclass(frozen=True, kw_only=True)
class Participant:
    """One client of a run across machines."""

    member: Member
    """What the register knows of it."""
    used: int
    """Rounds in which an answer of it was used."""
    failed: int
    """Rounds in which it was to train, or to answer a strategy's query, and no usable reply came."""
    reason: str
    """Why the last of those failed, or why it may not take part; empty where nothing was wrong."""

    @property
    def takes_part(self) -> bool:
        """Whether the model rests on it, or it has joined and was not selected yet."""
        return self.used > 0 or (self.member.status not in (REFUSED, DECLINED) and self.failed == 0)

    @property
    def counted(self) -> bool:
        """Whether its images are in the federation's class counts."""
        return bool(self.member.images) and self.member.status != REFUSED


def participants(register: MemberRegister, rounds: Sequence[Mapping[str, Any]]) -> list[Participant]:
    """Return every client of the register by number; none in a simulation."""
    used = Counter(client for record in rounds for client in used_in(record))
    failures = [item for record in rounds for item in work_that_failed(record).items()]
    failed = Counter(client for client, _ in failures)
    reasons = dict(failures)
    return [
        Participant(
            member=member,
            used=used[client],
            failed=failed[client],
            reason=member.reason or reasons.get(client, ""),
        )
        for client, member in sorted(register.members.items())
    ]


def used_in(record: Mapping[str, Any]) -> set[int]:
    """Return the clients whose answers a round used."""
    return set(record.get("clients") or ())


def work_that_failed(record: Mapping[str, Any]) -> dict[int, str]:
    """Return the reason by client whose work for a round's model failed."""
    # Without a learning rate nobody trained: the answers to queries made the model.
    stages = ("training", "statistic") if record.get("lr", 0) is None else ("training",)
    return {
        item["client"]: item["reason"]
        for item in record.get("refused") or ()
        if item["stage"] in stages and item["client"] not in used_in(record)
    }
