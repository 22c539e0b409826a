"""Tables of methods: all tuned in one budget, each run kept as it comes, a table broken off goes on.

A table is an experiment and the methods that are compared on it; a method is what it changes of that
experiment, and settings of its own. Each setting is run once with seed 0 and measured on images that were set
aside from the training images; the one with the best first score is run with the table's seeds on all
training images, and its last model is measured on the test images, once. No score is the best of several
rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import environments
from harness import Run, Store, Turn, merged

from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
Tables = Mapping[str, Any]
TUNED, MEASURED = "tuned", "measured"


@dataclass(frozen=True)
class Method:
    """A method: what it changes of a table's experiment.

    ``settings`` are further changes, of which tuning chooses one; of one alone there is nothing to choose.
    ``after`` names what is done to the finished model: ``"tau"`` is logit adjustment, ``"norms"`` the rows'
    equal norms.
    """

    tables: Tables
    settings: Sequence[Tables]
    after: str = ""


class Job(NamedTuple):
    """A run that is to be made."""

    turn: Turn
    setting: int
    tables: Tables
    """The whole experiment."""
    after: str
    tuning: bool


@dataclass(frozen=True, kw_only=True)
class Table(ABC):
    """An experiment, and what is compared on it.

    A kind of table says how a run is measured, compared, described and shown.
    """

    name: str
    """Also of the file of its results."""
    experiment: Tables
    """The experiment's tables; no method changes data, partition, rounds or network."""
    methods: Mapping[str, Method]
    scores: Mapping[str, str]
    """Columns, and the scores in them; settings are compared by the first one."""
    tuning: Tables
    """What sets images aside."""
    seeds: Sequence[int] = (1, 2, 3)
    splits: Mapping[str, Tables] = field(default_factory=lambda: {"": {}})
    """Variants of the experiment by name; settings are compared on the first one."""
    folder: Path = RESULTS
    """Where its results are."""

    def tables(
        self, method: str, setting: int, seed: int, split: str = "", *, tuning: bool
    ) -> dict[str, Any]:
        """Return the experiment of a run."""
        own = self.methods[method]
        keep = self.tuning if tuning else {}
        return merged(
            self.experiment, self.splits[split], own.tables, own.settings[setting], keep, {"seed": seed}
        )

    @abstractmethod
    def measure(self, job: Job, kept: Path | None) -> Run:
        """Make a run and return its scores and costs; ``kept`` is the folder in which one goes on."""

    @abstractmethod
    def score(self, run: Run) -> float:
        """Return the score by which settings are compared."""

    @abstractmethod
    def progress(self, run: Run) -> str:
        """Return a run in words."""

    @abstractmethod
    def markdown(self, store: Store) -> str:
        """Return the methods as Markdown, the best first."""

    def chosen(self, store: Store, method: str) -> int | None:
        """Return the setting that did best on images set aside; None while one of them is not measured."""
        if len(settings := self.methods[method].settings) == 1:
            return 0
        found = {
            int(run["setting"]): self.score(run)
            for run in store.runs
            if (run["workload"], run["rival"]) == (TUNED, method)
        }
        complete = len(found) == len(settings)
        return max(found, key=lambda setting: (found[setting], -setting)) if complete else None

    def pending(self, store: Store, methods: Sequence[str]) -> Iterator[Job]:
        """Yield the runs that can be made now: settings to compare, then seeds of the settings chosen."""
        for method in methods:
            settings, after = range(len(self.methods[method].settings)), self.methods[method].after
            for setting in settings if len(settings) > 1 else ():
                tables = self.tables(method, setting, 0, next(iter(self.splits)), tuning=True)
                yield Job(Turn(TUNED, method, setting), setting, tables, after, tuning=True)
        for seed in self.seeds:
            for split in self.splits:
                for method in methods:
                    if (best := self.chosen(store, method)) is not None:
                        turn = Turn(f"{MEASURED} {split}".strip(), method, seed)
                        tables = self.tables(method, best, seed, split, tuning=False)
                        yield Job(turn, best, tables, self.methods[method].after, tuning=False)

    def measured(self, store: Store, method: str, split: str = "") -> list[Run]:
        """Return a method's runs on test images."""
        workload = f"{MEASURED} {split}".strip()
        return [run for run in store.runs if (run["workload"], run["rival"]) == (workload, method)]

    def ranked(self, store: Store, split: str = "") -> list[tuple[str, list[Run]]]:
        """Return the methods that were run on test images with these runs, the best first."""
        found = [(name, own) for name in self.methods if (own := self.measured(store, name, split))]
        return sorted(found, key=lambda item: -statistics.mean(map(self.score, item[1])))

    def store(self) -> Store:
        """Return the runs that there are, and let what runs now find the images."""
        find_images()
        facts = {"environment": environment("cpu"), "experiment": self.experiment}
        return Store(self.folder / f"{self.name}.json", facts, several_machines=True)


def find_images() -> None:
    """Let what runs now find the images."""
    os.environ["FEDVISION_DATA"] = str(environments.images())


def run(table: Table, arguments: Sequence[str] | None = None) -> Store:
    """Make the runs that are missing, as many at a time as the command asks, and print the table.

    Args:
        table: What is compared.
        arguments: The command's, where some of them were the caller's.
    """
    store = table.store()
    parser = argparse.ArgumentParser(description=f"makes {table.folder.name}/{table.name}.json again")
    parser.add_argument("--only", default="", help="methods whose names contain this")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--runs", type=Path, help="folder in which unfinished runs are kept (default: none)")
    options = parser.parse_args(arguments)
    methods = [name for name in table.methods if options.only in name]
    if options.again:
        store.drop([job.turn for job in table.pending(store, methods)])
    if not options.table:
        # Twice: which seeds can be run is known when the settings are.
        for _ in range(2):
            take(store, table, list(table.pending(store, methods)), options.jobs, options.runs)
    print(table.markdown(store))
    return store


def take(store: Store, table: Table, plan: Sequence[Job], jobs: int, runs: Path | None = None) -> None:
    """Make the runs of a plan that are missing; one that fails is said and left out.

    Raises:
        ValueError: A run that is there was made with other tables.
    """
    missing = []
    for job in plan:
        if not (held := store.find(job.turn)):
            missing.append(job)
        elif held["tables"] != job.tables:
            raise ValueError(f"{job.turn.rival} was measured with other settings; measure it --again")
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawned) as pool:
        work = {pool.submit(table.measure, job, _folder(runs, table, job.turn)): job for job in missing}
        for number, done in enumerate(as_completed(work), 1):
            job = work[done]
            label = f"{number}/{len(missing)} {job.turn.workload} {job.turn.rival} #{job.turn.repetition}"
            if error := done.exception():
                print(f"{label}: failed: {error}", flush=True)
                continue
            found = done.result()
            store.add(job.turn, {"setting": job.setting, "tables": job.tables, **found})
            print(f"{label}: {table.progress(found)}; processor {found['cpu_s']:.0f} s", flush=True)


def _folder(runs: Path | None, table: Table, turn: Turn) -> Path | None:
    name = "-".join([table.name, *turn.workload.split(), *turn.rival.split(), str(turn.repetition)])
    return runs / name.replace(",", "").replace("'", "") if runs else None
