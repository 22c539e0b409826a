"""What the tables of tasks share: methods tuned alike, each beside all images together and each client alone.

A table is an experiment and the methods that are compared on it; a method is what it changes of that
experiment, and settings of its own, of which each is run once with seed 0 and measured on images that were
set aside from the training images (``data.validation``). The setting with the best first score is run with
the table's seeds on all training images, with fedvision's baselines: the same network trained on all images
together (``central``) and by each client alone (``local``), in the same budget. Scores are those of last
models on test images, of clients alone the mean over clients. Each seed draws other images, another split and
another first model; the data of such an experiment take ``seed`` and ``validation``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # a script finds what stands in its own folder alone

import environments
from harness import Run, Store, Turn, in_words, merged, spread

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parents[1] / "results" / "tasks"
Tables = Mapping[str, Any]
TUNED, MEASURED = "tuned", "measured"
WHO = {"federated": "federated", "central": "together", "local": "alone"}
"""Who trained, as runs and columns name it."""
BASELINES = ("local", "central")
VALIDATION = 0.2


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method: what it changes of a table's experiment, and further changes of which tuning chooses one."""

    tables: Tables
    settings: Sequence[Tables]


@dataclass(frozen=True, kw_only=True)
class Table:
    """An experiment, and what is compared on it."""

    name: str
    experiment: Tables
    """The experiment's tables; no method changes data, partition, rounds or network."""
    methods: Mapping[str, Method]
    scores: Mapping[str, str]
    """Columns, and the scores in them by their names in records; settings are compared by the first one."""
    seeds: Sequence[int] = (1, 2, 3)

    def tables(self, method: str, setting: int, seed: int, *, tuning: bool) -> dict[str, Any]:
        """Return the experiment of a run."""
        own = self.methods[method]
        data = {"seed": seed} | ({"validation": VALIDATION} if tuning else {})
        return merged(self.experiment, own.tables, own.settings[setting], {"seed": seed, "data": data})


def measure(tables: Tables, baselines: Sequence[str], kept: Path | None = None) -> Run:
    """Run an experiment and return the last scores on test images by who trained, and what they cost.

    Args:
        tables: The experiment.
        baselines: What is trained beside the federation.
        kept: Run folder in which a run that is broken off goes on; without one it starts again.
    """
    begun, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = kept or Path(temporary) / "run"
        result = simulate(
            ExperimentConfig.from_dict(tables), out=folder, resume=kept is not None, baselines=baselines
        )
        beside = result.folder.summary().get("baselines", {})
        scores: dict[str, Any] = {"federated": result.scores}
        for who, own in beside.get("scores", {}).get("test", {}).items():
            if who != "federated":
                # Of clients alone there is a spread of each score.
                scores[who] = {key: _mean_of(value) for key, value in own.items()}
        return {
            "scores": scores,
            "gains": beside.get("gains", {}),
            "counts": [sum(column) for column in zip(*result.folder.split()["counts"], strict=True)],
            "up": [one["bytes"]["up"] for one in result.rounds],
            "wall_s": time.perf_counter() - begun,
            "cpu_s": time.process_time() - processor,
        }


def _mean_of(value: Any) -> float:
    return float(value["mean"] if isinstance(value, Mapping) else value)


def chosen(store: Store, table: Table, method: str) -> int | None:
    """Return the setting that did best on images set aside; None while one of them is not measured."""
    settings, first = table.methods[method].settings, next(iter(table.scores.values()))
    if len(settings) == 1:
        return 0
    found = {
        int(run["setting"]): run["scores"]["federated"][first]
        for run in store.runs
        if (run["workload"], run["rival"]) == (TUNED, method)
    }
    complete = len(found) == len(settings)
    return max(found, key=lambda setting: (found[setting], -setting)) if complete else None


def pending(store: Store, table: Table, methods: Sequence[str]) -> Iterator[tuple[Turn, int, Tables]]:
    """Yield turn, setting and experiment of the runs that can be made now: settings first, then seeds."""
    for method in methods:
        settings = range(len(table.methods[method].settings))
        for setting in settings if len(settings) > 1 else ():
            yield Turn(TUNED, method, setting), setting, table.tables(method, setting, 0, tuning=True)
    for seed in table.seeds:
        for method in methods:
            if (setting := chosen(store, table, method)) is not None:
                own = table.tables(method, setting, seed, tuning=False)
                yield Turn(MEASURED, method, seed), setting, own


def run(table: Table, arguments: Sequence[str] | None = None, results: Path = RESULTS) -> Store:
    """Make the runs that are missing, as many at a time as the command asks, and print the table.

    Args:
        table: What is compared.
        arguments: The command's; None takes the program's own.
        results: Where the runs are kept, in a file of the table's name.
    """
    parser = argparse.ArgumentParser(description=f"makes results/tasks/{table.name}.json again")
    parser.add_argument("--only", default="", help="methods whose names contain this")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--runs", type=Path, help="folder in which unfinished runs are kept (default: none)")
    options = parser.parse_args(arguments)
    methods = [name for name in table.methods if options.only in name]
    store = store_of(table, results)
    if options.again:
        store.drop([turn for turn, _, _ in pending(store, table, methods)])
    if not options.table:
        # Twice: which seeds can be run is known when the settings are.
        for _ in range(2):
            take(store, table, list(pending(store, table, methods)), options.jobs, options.runs)
    print(markdown(store, table))
    return store


def store_of(table: Table, results: Path = RESULTS) -> Store:
    """Return a table's runs, and let what runs now find the images and the plug-ins beside this file."""
    os.environ["FEDVISION_DATA"] = str(environments.images())
    folder = str(Path(__file__).parent)
    if folder not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    facts = {"environment": environment("cpu"), "experiment": table.experiment}
    return Store(results / f"{table.name}.json", facts, several_machines=True)


def take(
    store: Store,
    table: Table,
    plan: Sequence[tuple[Turn, int, Tables]],
    jobs: int,
    runs: Path | None = None,
) -> None:
    """Make the runs of a plan that are missing; one that fails is said and left out.

    Raises:
        ValueError: A run that is there was made with other tables.
    """
    missing = []
    for turn, setting, tables in plan:
        if not (held := store.find(turn)):
            missing.append((turn, setting, tables))
        elif held["tables"] != tables:
            raise ValueError(f"{turn.rival} was measured with other settings; measure it --again")
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawned) as pool:
        work = {
            pool.submit(
                measure,
                tables,
                BASELINES if turn.workload == MEASURED else (),
                runs / f"{table.name}-{turn.workload}-{turn.rival}-{turn.repetition}" if runs else None,
            ): (turn, setting, tables)
            for turn, setting, tables in missing
        }
        for number, done in enumerate(as_completed(work), 1):
            turn, setting, tables = work[done]
            label = f"{number}/{len(missing)} {turn.workload} {turn.rival} #{turn.repetition}"
            if error := done.exception():
                print(f"{label}: failed: {error}", flush=True)
                continue
            found = done.result()
            store.add(turn, {"setting": setting, "tables": tables, **found})
            print(f"{label}: {progress(found, table)}", flush=True)


def progress(run: Run, table: Table) -> str:
    """Return a run's first score by who trained, in percent, and its processor time."""
    first = next(iter(table.scores.values()))
    parts = [f"{who} {100 * run['scores'][who][first]:.1f}" for who in WHO if who in run["scores"]]
    return f"{first} {', '.join(parts)}; processor {run['cpu_s']:.0f} s"


def markdown(store: Store, table: Table) -> str:
    """Return the methods as a Markdown table in percent, the best first, by who trained."""
    head = ["method", "setting"]
    head += [f"{column}, {who}" for column in table.scores for who in WHO.values()]
    lines = [f"| {' | '.join([*head, 'n'])} |", "|" + "---|" * (len(head) + 1)]
    first = next(iter(table.scores.values()))
    found = {
        method: [run for run in store.runs if (run["workload"], run["rival"]) == (MEASURED, method)]
        for method in table.methods
    }
    ranked = sorted(
        (item for item in found.items() if item[1]),
        key=lambda item: -sum(run["scores"]["federated"][first] for run in item[1]) / len(item[1]),
    )
    for method, runs in ranked:
        setting = in_words(table.methods[method].settings[runs[0]["setting"]])
        cells = [_cell(runs, who, score) for score in table.scores.values() for who in WHO]
        lines.append(f"| {' | '.join([method, setting, *cells, str(len(runs))])} |")
    return "\n".join(lines)


def _cell(runs: Sequence[Run], who: str, score: str) -> str:
    values = [100 * run["scores"][who][score] for run in runs if score in run["scores"].get(who, {})]
    return spread(values, ".1f") if values else "–"
