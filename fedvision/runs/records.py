"""Rounds' records, read: each measurement in the round whose model it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def in_their_rounds(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rounds' records in which nothing is ``received``: it is ``local`` in the round that it is of."""
    placed = {record["round"]: dict(record) for record in records}
    for record in records:
        if "received" in record:
            received = dict(placed[record["round"]].pop("received") or {})
            if (round := received.pop("round", None)) in placed:
                own = {"personal": received.pop("personal")} if "personal" in received else {}
                placed[round] |= {"local": received, **own}
    return list(placed.values())
