"""What all long-tail tables share: methods under one protocol, tuned alike, each run kept as it comes.

A protocol is an experiment and the methods that are compared on it; a method is what it changes of that
experiment, and four settings of its own. The same budget for all: each of the four is run once, with seed 0,
and measured on training images that were set aside before the long tail is cut; the one with the best
balanced accuracy is run with the other seeds on all training images, and its last model is measured on the
test images, once. No score is the best of several rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # a script finds what stands in its own folder alone

import environments
from harness import Run, Store, Turn, in_words, merged, spread

from fedvision import ExperimentConfig, adjustment, load, registry, simulate
from fedvision.generated import leakage_of_run
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parents[1] / "results" / "longtail"
Tables = Mapping[str, Any]
TUNED, MEASURED = "tuned", "measured"
FEW = 20
SCORES = {
    "balanced accuracy": "balanced_accuracy",
    "most frequent 3": "head",
    "middle 4": "medium",
    "rarest 3": "tail",
    "worst client": "worst_client",
}
"""Columns of every table and the scores in them."""


@dataclass(frozen=True)
class Method:
    """A method: what it changes of a protocol's experiment.

    ``settings`` are four further changes, of which tuning chooses one; of one alone there is nothing to
    choose. ``after`` names what is done to the
    finished model: ``"tau"`` is logit adjustment, ``"norms"`` the rows' equal norms.
    """

    tables: Tables
    settings: Sequence[Tables]
    after: str = ""


@dataclass(frozen=True)
class Protocol:
    """An experiment, and how it is tuned and measured."""

    name: str
    experiment: Tables
    """The experiment's tables; no method changes data, partition, rounds or backbone."""
    methods: Mapping[str, Method]
    tuning: Tables
    """What sets images aside: a share of ``data`` that takes the test images' place, or clients' holdout."""
    seeds: Sequence[int] = (1, 2, 3)
    splits: Mapping[str, Tables] = field(default_factory=lambda: {"": {}})
    """Variants of the experiment by name; the first one is what settings are compared on."""
    scores: Mapping[str, str] = field(default_factory=lambda: SCORES)
    """Columns of its table and the scores in them; settings are compared by the first one."""

    def tables(self, method: str, setting: int, seed: int, split: str = "", *, tuning: bool) -> Tables:
        """Return the experiment of a run."""
        own = self.methods[method]
        keep = self.tuning if tuning else {}
        return merged(
            self.experiment, self.splits[split], own.tables, own.settings[setting], keep, {"seed": seed}
        )


def measure(tables: Tables, after: str, view: str = "server", kept: Path | None = None) -> Run:
    """Run an experiment and return its last model's scores, bytes from all clients, and processor time.

    Args:
        tables: The experiment.
        after: What is done to the finished model.
        view: Whose images are scored: ``"server"``, or what clients hold out, ``"local"``.
        kept: Run folder in which a run that is broken off goes on; without one it starts again.
    """
    begun, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = kept or Path(temporary) / "run"
        result = simulate(ExperimentConfig.from_dict(tables), out=folder, resume=kept is not None)
        clients = result.folder.split()["counts"]
        leaks = leakage_of_run(folder) if (folder / "generator.safetensors").exists() else []
        confusion = (result.rounds[-1][view] or {}).get("confusion", [])
        if after:
            adjusted = adjustment.adjust(folder, Path(temporary) / "adjusted", norms=after == "norms")
            dataset = registry.build("data", ExperimentConfig.from_dict(tables).data)
            confusion = load(adjusted.folder, device="cpu").evaluate(dataset).confusion.matrix().tolist()
    return {
        "confusion": confusion,
        "worst_client": worst_client(recalls(confusion), clients) if confusion else None,
        "counts": [sum(column) for column in zip(*clients, strict=True)],
        "up": [one["bytes"]["up"] for one in result.rounds],
        "leakage": [{"name": one.name, "ratio": one.ratio, "nearer": one.nearer} for one in leaks],
        "own": own_images(result.rounds[-1]),
        "wall_s": time.perf_counter() - begun,
        "cpu_s": time.process_time() - processor,
    }


def own_images(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what clients reached on images that they hold out, with models of their own where there are."""
    if not (found := record.get("personal") or record.get("local")):
        return {}
    scores, spread = found["scores"], found["spread"]
    return {
        "own": scores["accuracy"],
        "own_balanced": scores["balanced_accuracy"],
        "own_worst": spread["worst"],
    }


def recalls(confusion: Sequence[Sequence[int]]) -> list[float]:
    """Return each class's recall of a confusion matrix by true and predicted class."""
    return [row[label] / max(1, sum(row)) for label, row in enumerate(confusion)]


def f1(confusion: Sequence[Sequence[int]]) -> list[float]:
    """Return each class's F1: 2 true positives over images of the class and predictions of it."""
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    return [2 * row[label] / max(1, sum(row) + predicted[label]) for label, row in enumerate(confusion)]


def worst_client(recall: Sequence[float], clients: Sequence[Sequence[int]]) -> float:
    """Return the lowest accuracy over the clients, each on test images in its own mixture of classes.

    Clients of fewer than ``FEW`` images have no part: it would be the recall of one class.
    """
    return min(
        sum(count * share for count, share in zip(own, recall, strict=True)) / sum(own)
        for own in clients
        if sum(own) >= FEW
    )


def thirds(run: Run) -> dict[str, float]:
    """Return a run's scores in %: of the most frequent 3 classes, the rarest 3, and those between.

    Of fewer than seven classes there are only the rarest one, as ``tail``, and all together.
    """
    own = {name: 100 * value for name, value in run.get("own", {}).items()}
    if not (recall := recalls(run["confusion"])):
        return own
    ranked = sorted(range(len(run["counts"])), key=lambda label: -run["counts"][label])
    parts = {"balanced_accuracy": ranked, "tail": ranked[-1:]}
    if len(ranked) > 6:
        parts = {**parts, "head": ranked[:3], "medium": ranked[3:-3], "tail": ranked[-3:]}
    found = {name: 100 * statistics.mean(recall[label] for label in part) for name, part in parts.items()}
    macro_f1 = 100 * statistics.mean(f1(run["confusion"]))
    return {**own, **found, "macro_f1": macro_f1, "worst_client": 100 * run["worst_client"]}


def chosen(store: Store, protocol: Protocol, method: str) -> int | None:
    """Return the setting that did best on images set aside; None while one of them is not measured."""
    first = next(iter(protocol.scores.values()))
    found = {
        int(run["setting"]): thirds(run)[first]
        for run in store.runs
        if (run["workload"], run["rival"]) == (TUNED, method)
    }
    if len(settings := protocol.methods[method].settings) == 1:
        return 0
    complete = len(found) == len(settings)
    return max(found, key=lambda setting: (found[setting], -setting)) if complete else None


def pending(store: Store, protocol: Protocol, methods: Sequence[str]) -> Iterator[tuple[Turn, Tables]]:
    """Yield the runs that can be made now: settings to compare, then seeds of the settings chosen."""
    for method in methods:
        settings = range(len(protocol.methods[method].settings))
        for setting in settings if len(settings) > 1 else ():
            yield (
                Turn(TUNED, method, setting),
                protocol.tables(method, setting, 0, next(iter(protocol.splits)), tuning=True),
            )
    for seed in protocol.seeds:
        for split in protocol.splits:
            for method in methods:
                if (setting := chosen(store, protocol, method)) is not None:
                    workload = f"{MEASURED} {split}".strip()
                    yield (
                        Turn(workload, method, seed),
                        protocol.tables(method, setting, seed, split, tuning=False),
                    )


def run(protocol: Protocol, arguments: Sequence[str] | None = None) -> Store:
    """Make the runs that are missing, as many at a time as the command asks, and print the table.

    Args:
        protocol: What is compared.
        arguments: The command's, where some of them were the caller's.
    """
    parser = argparse.ArgumentParser(description=f"makes results/longtail/{protocol.name}.json again")
    parser.add_argument("--only", default="", help="methods whose names contain this")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--runs", type=Path, help="folder in which unfinished runs are kept (default: none)")
    options = parser.parse_args(arguments)
    methods = [name for name in protocol.methods if options.only in name]
    store = store_of(protocol)
    if options.again:
        store.drop([turn for turn, _ in pending(store, protocol, methods)])
    if not options.table:
        # Twice: which seeds can be run is known when the settings are.
        for _ in range(2):
            _take(store, protocol, list(pending(store, protocol, methods)), options.jobs, options.runs)
    print(table(store, protocol))
    return store


def find_images() -> None:
    """Let what runs now find the images."""
    os.environ["FEDVISION_DATA"] = str(environments.images())


def store_of(protocol: Protocol) -> Store:
    """Return a protocol's runs."""
    find_images()
    facts = {"environment": environment("cpu"), "experiment": protocol.experiment}
    return Store(RESULTS / f"{protocol.name}.json", facts, several_machines=True)


def _take(
    store: Store,
    protocol: Protocol,
    plan: Sequence[tuple[Turn, Tables]],
    jobs: int,
    runs: Path | None = None,
) -> None:
    """Make the runs of a plan that are missing; one that fails is said and left out.

    Raises:
        ValueError: A run that is there was made with other tables.
    """
    missing = []
    for turn, tables in plan:
        if not (held := store.find(turn)):
            missing.append((turn, tables))
        elif held["tables"] != tables:
            raise ValueError(f"{turn.rival} was measured with other settings; measure it --again")
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawned) as pool:
        work = {
            pool.submit(
                measure,
                tables,
                protocol.methods[turn.rival].after,
                "local" if turn.workload == TUNED and "evaluation" in protocol.tuning else "server",
                _folder(runs, protocol, turn),
            ): (turn, tables)
            for turn, tables in missing
        }
        for number, done in enumerate(as_completed(work), 1):
            turn, tables = work[done]
            label = f"{number}/{len(missing)} {turn.workload} {turn.rival} #{turn.repetition}"
            if error := done.exception():
                print(f"{label}: failed: {error}", flush=True)
                continue
            found = done.result()
            setting = turn.repetition if turn.workload == TUNED else chosen(store, protocol, turn.rival)
            store.add(turn, {"setting": setting, "tables": tables, **found})
            scores = ", ".join(f"{name} {value:.1f}" for name, value in thirds(found).items())
            print(f"{label}: {scores}; processor {found['cpu_s']:.0f} s", flush=True)


def _folder(runs: Path | None, protocol: Protocol, turn: Turn) -> Path | None:
    name = "-".join([protocol.name, *turn.workload.split(), *turn.rival.split(), str(turn.repetition)])
    return runs / name.replace(",", "").replace("'", "") if runs else None


def measured(store: Store, method: str, split: str = "") -> list[Run]:
    """Return a method's runs on test images."""
    workload = f"{MEASURED} {split}".strip()
    return [run for run in store.runs if (run["workload"], run["rival"]) == (workload, method)]


def table(store: Store, protocol: Protocol) -> str:
    """Return the methods as Markdown, a table for each split, the best first."""
    parts, first = [], next(iter(protocol.scores.values()))
    for split in protocol.splits:
        found = {name: own for name in protocol.methods if (own := measured(store, name, split))}
        head = ["method", "setting", *protocol.scores, "processor, s", "MB up", "n"]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for name, runs in sorted(found.items(), key=lambda item: -_mean(item[1], first)):
            cells = [_cell(runs, key) for key in protocol.scores.values()]
            setting = protocol.methods[name].settings[runs[0]["setting"]]
            seconds = statistics.median(one["cpu_s"] for one in runs)
            sent = statistics.median(sum(one["up"]) / 1e6 for one in runs)
            row = [name, in_words(setting), *cells, f"{seconds:.0f}", f"{sent:.1f}", str(len(runs))]
            lines.append(f"| {' | '.join(row)} |")
        parts.append("\n".join([*([f"{split}:", ""] if split else []), *lines]))
    return "\n\n".join(parts)


def _cell(runs: Sequence[Run], score: str) -> str:
    found = [value for one in runs if (value := thirds(one).get(score)) is not None]
    return spread(found, ".1f") if found else "–"


def _mean(runs: Sequence[Run], score: str) -> float:
    return statistics.mean(thirds(one)[score] for one in runs)
