"""Baselines of several runs side by side: mean and deviation over seeds, as of the federated runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedvision.baselines.gains import TEST
from fedvision.reporting.baselines import MODELS
from fedvision.reporting.compare import Group, spread


class Row(NamedTuple):
    """One baseline of a group of runs."""

    name: str
    runs: int
    """Of how many runs."""
    cells: list[str]
    """Mean and deviation of each score."""


def beside(group: Group, scores: Sequence[str]) -> list[Row]:
    """Return the baselines of a group's runs on the test images; none where there are none.

    Args:
        group: Runs that repeat each other.
        scores: Keys of the scores; of clients alone, each is the mean over clients.
    """
    values = {score: _values(group, score) for score in scores}
    rows = []
    for name in dict.fromkeys(name for own in values.values() for name in own):
        spreads = [spread(values[score].get(name, ())) for score in scores]
        cells = ["–" if one is None else str(one) for one in spreads]
        rows.append(Row(MODELS[name], max(one.n for one in spreads if one), cells))
    return rows


def _values(group: Group, score: str) -> dict[str, list[float]]:
    """Return one score of each run's baselines by model."""
    found: dict[str, list[float]] = {}
    for run in group.runs:
        scores = run.baselines.scores(TEST) if run.baselines and run.measurement("server") else {}
        for name in ("central", "local"):
            value = scores.get(name, {}).get(score)
            value = value["mean"] if isinstance(value, Mapping) else value
            if value is not None:
                found.setdefault(name, []).append(float(value))
    return found
