"""Rivals in turns, and what was measured kept: a run that was broken off goes on where it stopped."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Run = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One measurement: a rival, a workload, the how-manieth time."""

    workload: str
    rival: str
    repetition: int

    def of(self, run: Run) -> bool:
        """Return whether a stored run is this measurement."""
        return (run["workload"], run["rival"], run["repetition"]) == (
            self.workload,
            self.rival,
            self.repetition,
        )


class Store:
    """The measurements in a JSON file, written after each one.

    Args:
        path: The file; it may not exist yet.
        facts: What the measurements depend on (machine, versions, rounds); a file of other facts is refused.
        several_machines: Whether a file's runs may be of several environments, as scores may and seconds
            may not; a run of another one than the file's first then has its own under "environment".

    Raises:
        ValueError: The file's measurements were taken under other facts.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], *, several_machines: bool = False) -> None:
        self.path, self.facts = path, json.loads(json.dumps(facts))
        self.runs: list[Run] = []
        self._own: Run = {}
        if path.exists():
            held = json.loads(path.read_text())
            first = held["facts"].get("environment")
            if several_machines and self.facts.get("environment") != first:
                self._own = {"environment": self.facts["environment"]}
                self.facts["environment"] = first
            differing = sorted(
                key for key in {*held["facts"], *self.facts} if held["facts"].get(key) != self.facts.get(key)
            )
            if differing:
                raise ValueError(
                    f"{path} was measured with another {', '.join(differing)}; measure all --again or "
                    "give the results another --name"
                )
            self.runs = held["runs"]

    def find(self, turn: Turn) -> Run | None:
        """Return a measurement that is there."""
        return next((run for run in self.runs if turn.of(run)), None)

    def drop(self, turns: Sequence[Turn]) -> None:
        """Forget measurements, to take them again."""
        self.runs = [run for run in self.runs if not any(turn.of(run) for turn in turns)]

    def add(self, turn: Turn, run: Mapping[str, Any]) -> None:
        """Keep a measurement."""
        self.runs.append({**vars(turn), **run, **self._own})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"facts": self.facts, "runs": self.runs}, indent=1))
        os.replace(temporary, self.path)


def turns(workloads: Sequence[str], rivals: Sequence[str], repetitions: int) -> Iterator[Turn]:
    """Yield every measurement: repetitions outside, rivals inside, each time another one first.

    So a spell in which the machine is busy falls on all rivals, and none always follows the same one.
    """
    for repetition in range(repetitions):
        for workload in workloads:
            first = repetition % max(1, len(rivals))
            for rival in [*rivals[first:], *rivals[:first]]:
                yield Turn(workload, rival, repetition)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Return the mean ± the sample standard deviation, the mean alone of one value."""
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def in_seconds(run: Mapping[str, Any]) -> str:
    """Return a measurement's time in words."""
    return f"{run['loop_s']:.1f} s, others {run['others']:.0%}"


def take(
    store: Store,
    plan: Sequence[Turn],
    measure: Callable[[Turn], Mapping[str, Any]],
    log: Callable[[str], None] = print,
    describe: Callable[[Mapping[str, Any]], str] = in_seconds,
) -> None:
    """Take the measurements that are missing; one that fails is said and left out.

    Args:
        store: Where they are kept.
        plan: The measurements.
        measure: Takes one.
        log: Takes a line on each.
        describe: Returns a measurement in words.
    """
    for number, turn in enumerate(plan, 1):
        label = f"{number}/{len(plan)} {turn.workload} {turn.rival} #{turn.repetition + 1}"
        if store.find(turn):
            log(f"{label}: kept")
            continue
        try:
            run = measure(turn)
        except Exception as error:
            log(f"{label}: failed: {error}")
            continue
        store.add(turn, run)
        log(f"{label}: {describe(run)}")


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables laid over each other: of two the later one's keys, in nested tables as well."""
    whole: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            nested = isinstance(value, Mapping) and isinstance(whole.get(key), Mapping)
            whole[key] = merged(whole[key], value) if nested else value
    return whole


def in_words(tables: Mapping[str, Any]) -> str:
    """Return a setting as a table's cell: the last key of each value."""
    cells = []
    for key, value in tables.items():
        cells.append(in_words(value) if isinstance(value, Mapping) else f"{key} {value}")
    return ", ".join(cells)
