"""Variants of one experiment over seeds: the final scores of each, kept as they come, and their table.

For the benchmarks that compare what is learned: a variant differs from the others in one thing, all have the
split, first weights and mini-batches of their seed, and no figure is the best of several rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import environments
from harness import Store, Turn, spread, take, turns

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
SCORES = {"balanced accuracy": "balanced_accuracy", "head": "head", "tail": "tail"}
"""Columns of every table, and the scores in them."""


def final(config: ExperimentConfig) -> dict[str, Any]:
    """Run an experiment; return its last round's scores, bytes a round from the clients, and seconds."""
    begun, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(config, out=Path(folder) / "run")
    sent = [record["bytes"] for record in result.rounds]
    return {
        "scores": result.scores,
        "up": [one["up"] for one in sent],
        "up_whole": [one.get("up_whole", one["up"]) for one in sent],
        "wall_s": time.perf_counter() - begun,
        "cpu_s": time.process_time() - processor,
    }


def compare(
    name: str,
    experiment: Callable[[str, str, int], Mapping[str, Any]],
    splits: Sequence[str],
    variants: Sequence[str],
) -> Store:
    """Run every variant on every split with every seed, in turns; what is in the results already is kept.

    Args:
        name: Of the results' file.
        experiment: Returns the experiment's table of a split, a variant and a seed.
        splits: How images are split over clients.
        variants: What is compared.

    Returns:
        The runs: ``workload`` is the split, ``rival`` the variant, ``repetition`` the seed.
    """
    parser = argparse.ArgumentParser(description=f"makes results/{name}.json again")
    parser.add_argument("--seeds", type=int, default=3, help="0 to one less (default: 3)")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    options = parser.parse_args()
    os.environ["FEDVISION_DATA"] = str(environments.images())
    asked = {split: {one: experiment(split, one, 0) for one in variants} for split in splits}
    store = Store(RESULTS / f"{name}.json", {"environment": environment("cpu"), "experiments": asked})
    plan = list(turns(splits, variants, options.seeds))
    if options.again:
        store.drop(plan)

    def measure(turn: Turn) -> dict[str, Any]:
        table = experiment(turn.workload, turn.rival, turn.repetition)
        return final(ExperimentConfig.from_dict(table))

    def describe(run: Mapping[str, Any]) -> str:
        figures = ", ".join(f"{column} {run['scores'][key]:.3f}" for column, key in SCORES.items())
        return f"{figures}; {run['wall_s']:.0f} s, of the processor {run['cpu_s']:.0f} s"

    take(store, plan, measure, lambda line: print(line, flush=True), describe)
    return store


def cells(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the scores of a variant's runs, each as mean ± sample deviation over seeds."""
    return [spread([run["scores"][key] for run in runs]) for key in SCORES.values()]


def of(store: Store, split: str, variant: str) -> list[dict[str, Any]]:
    """Return a variant's runs on a split."""
    return [run for run in store.runs if (run["workload"], run["rival"]) == (split, variant)]
