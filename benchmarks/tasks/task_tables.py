"""What the tables of tasks share: each method beside all images together and each client alone.

Beside a method's federation stand fedvision's baselines: the same network trained on all images together
(``central``) and by each client alone (``local``), in the same budget. Scores are of last models on test
images, of clients alone the mean over clients. Each seed draws another split and another first model, and
other images where the data of an experiment take ``seed``.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # a script finds what stands in its own folder alone

from harness import Run, Store, in_words, merged, spread
from one_round import DATA
from tables import RESULTS, Job, Method, Table, Tables, run

from fedvision import ExperimentConfig, simulate

__all__ = ["DATA", "Method", "Tables", "TaskTable", "run"]
"""The scripts beside this file take all from here, which finds the folder above."""
WHO = {"federated": "federated", "central": "together", "local": "alone"}
"""Who trained, as runs and columns name it."""
BASELINES = ("local", "central")
VALIDATION = 0.2


@dataclass(frozen=True, kw_only=True)
class TaskTable(Table):
    """A table of a task's losses by who trained."""

    seeded: bool = True
    """Whether each seed draws other data; those of files are what they are."""
    beside: Sequence[str] = BASELINES
    """Baselines that stand beside the federation."""
    tuning: Tables = field(default_factory=lambda: {"data": {"validation": VALIDATION}})
    folder: Path = RESULTS / "tasks"

    def tables(
        self, method: str, setting: int, seed: int, split: str = "", *, tuning: bool
    ) -> dict[str, Any]:
        """Return the experiment of a run, whose data are the seed's where they are drawn."""
        own = super().tables(method, setting, seed, split, tuning=tuning)
        return merged(own, {"data": {"seed": seed}}) if self.seeded else own

    def measure(self, job: Job, kept: Path | None) -> Run:
        """Run an experiment, and what stands beside it; settings are compared without.

        Returns:
            The last scores on test images by who trained, class counts, bytes from all clients by round, and
            seconds.
        """
        begun, processor = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as temporary:
            result = simulate(
                ExperimentConfig.from_dict(job.tables),
                out=kept or Path(temporary) / "run",
                resume=kept is not None,
                baselines=() if job.tuning else self.beside,
            )
            beside = result.folder.summary().get("baselines", {})
            views = {**beside.get("scores", {}).get("test", {}), "federated": result.scores}
            return {
                "scores": {who: _numbers(own) for who, own in views.items()},
                "gains": beside.get("gains", {}),
                "counts": [sum(column) for column in zip(*result.folder.split()["counts"], strict=True)],
                "up": [one["bytes"]["up"] for one in result.rounds],
                "wall_s": time.perf_counter() - begun,
                "cpu_s": time.process_time() - processor,
            }

    def score(self, run: Run) -> float:
        """Return the first of the table's scores."""
        return float(run["scores"]["federated"][next(iter(self.scores.values()))])

    def progress(self, run: Run) -> str:
        """Return the first score by who trained, in percent."""
        first = next(iter(self.scores.values()))
        parts = [f"{who} {100 * run['scores'][who][first]:.1f}" for who in WHO if who in run["scores"]]
        return f"{first} {', '.join(parts)}"

    def markdown(self, store: Store) -> str:
        """Return the methods as a Markdown table in percent, the best first, by who trained."""
        shown = [who for who in WHO if who in ("federated", *self.beside)]
        head = ["method", "setting", *(f"{column}, {WHO[who]}" for column in self.scores for who in shown)]
        head += ["processor, s", "n"]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for method, runs in self.ranked(store):
            setting = in_words(self.methods[method].settings[runs[0]["setting"]])
            cells = [_cell(runs, who, score) for score in self.scores.values() for who in shown]
            cells += [f"{statistics.median(one['cpu_s'] for one in runs):.0f}", str(len(runs))]
            lines.append(f"| {' | '.join([method, setting, *cells])} |")
        return "\n".join(lines)

    def store(self) -> Store:
        """Return the runs that there are, and let what runs now find images, and plug-ins beside this."""
        folder = str(Path(__file__).parent)
        if folder not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        return super().store()


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return those scores that there are, of clients alone, of which there is a spread, the mean."""
    means = {key: value["mean"] if isinstance(value, Mapping) else value for key, value in scores.items()}
    return {key: float(value) for key, value in means.items() if value is not None}


def _cell(runs: Sequence[Run], who: str, score: str) -> str:
    values = [100 * run["scores"][who][score] for run in runs if score in run["scores"].get(who, {})]
    return spread(values, ".1f") if values else "–"
