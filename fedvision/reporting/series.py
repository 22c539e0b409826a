"""Figures over rounds, as curves are drawn of them."""

from __future__ import annotations

from typing import NamedTuple


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
