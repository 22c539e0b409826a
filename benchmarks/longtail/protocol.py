"""What all long-tail tables share: what a run is measured by, and what stands in a table.

Settings are compared by balanced accuracy on training images that were set aside before the long tail is cut;
each method has four.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # a script finds what stands in its own folder alone

import tables
from harness import Run, Store, in_words, merged, spread
from tables import Job, Method, Table, Tables, find_images, run

from fedvision import ExperimentConfig, adjustment, load, registry, simulate
from fedvision.generated import leakage_of_run

__all__ = [
    "RESULTS",
    "Method",
    "Protocol",
    "Tables",
    "find_images",
    "merged",
    "recalls",
    "run",
    "thirds",
    "worst_client",
]
"""The scripts beside this file take all from here, which finds the folder above."""
RESULTS = tables.RESULTS / "longtail"
FEW = 20
SCORES = {
    "balanced accuracy": "balanced_accuracy",
    "most frequent 3": "head",
    "middle 4": "medium",
    "rarest 3": "tail",
    "worst client": "worst_client",
}
"""Columns of every table and the scores in them."""


@dataclass(frozen=True, kw_only=True)
class Protocol(Table):
    """A table of classifiers by how frequent their classes are.

    ``tuning`` is a share of ``data`` that takes the test images' place, or clients' holdout.
    """

    scores: Mapping[str, str] = field(default_factory=lambda: SCORES)
    folder: Path = RESULTS

    def measure(self, job: Job, kept: Path | None) -> Run:
        """Run an experiment, and do to the finished model what the method does.

        Returns:
            The last model's confusion counts and what follows of them with the clients' class counts; bytes
            from all clients by round, what a generator leaks, and seconds. Images are the server's; in tuning
            with clients' holdout they are those that clients hold out.
        """
        view = "local" if job.tuning and "evaluation" in self.tuning else "server"
        begun, processor = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as temporary:
            folder, config = kept or Path(temporary) / "run", ExperimentConfig.from_dict(job.tables)
            result = simulate(config, out=folder, resume=kept is not None)
            clients = result.folder.split()["counts"]
            leaks = leakage_of_run(folder) if (folder / "generator.safetensors").exists() else []
            confusion = (result.rounds[-1][view] or {}).get("confusion", [])
            if job.after:
                adjusted = adjustment.adjust(folder, Path(temporary) / "adjusted", norms=job.after == "norms")
                dataset = registry.build("data", config.data)
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

    def score(self, run: Run) -> float:
        """Return the first of the table's scores."""
        return thirds(run)[next(iter(self.scores.values()))]

    def progress(self, run: Run) -> str:
        """Return all scores."""
        return ", ".join(f"{name} {value:.1f}" for name, value in thirds(run).items())

    def markdown(self, store: Store) -> str:
        """Return the methods as Markdown, a table for each split, the best first."""
        parts = []
        for split in self.splits:
            head = ["method", "setting", *self.scores, "processor, s", "MB up", "n"]
            lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
            for name, runs in self.ranked(store, split):
                cells = [_cell(runs, key) for key in self.scores.values()]
                setting = self.methods[name].settings[runs[0]["setting"]]
                seconds = statistics.median(one["cpu_s"] for one in runs)
                sent = statistics.median(sum(one["up"]) / 1e6 for one in runs)
                row = [name, in_words(setting), *cells, f"{seconds:.0f}", f"{sent:.1f}", str(len(runs))]
                lines.append(f"| {' | '.join(row)} |")
            parts.append("\n".join([*([f"{split}:", ""] if split else []), *lines]))
        return "\n\n".join(parts)


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


def _cell(runs: Sequence[Run], score: str) -> str:
    found = [value for one in runs if (value := thirds(one).get(score)) is not None]
    return spread(found, ".1f") if found else "–"
