"""Figures over rounds, as curves are drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Series(NamedTuple):
    """One figure over rounds; rounds in which it was not measured are left out."""

    rounds: list[int]
    values: list[float]


class Band(NamedTuple):
    """One figure over rounds and clients."""

    rounds: list[int]
    lowest: list[float]
    median: list[float]
    highest: list[float]


def dig(record: Any, keys: Sequence[str]) -> Any:
    """Return what a record has under nested keys; None where there is nothing."""
    for key in keys:
        if not isinstance(record, dict) or record.get(key) is None:
            return None
        record = record[key]
    return record


def values_of(table: Any) -> list[float]:
    """Return the numbers of a table of clients, without those that are unknown."""
    return [float(value) for value in table.values() if value is not None] if table else []
