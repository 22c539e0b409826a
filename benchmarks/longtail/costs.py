"""What the package's method costs beside FedAvg: a client's time, and bytes.

    python benchmarks/longtail/costs.py [--repetitions 3]

The experiment of fashion.py, FedAvg with cross-entropy and ``longtail`` with logit adjustment
in turns, each with the same clients, images and steps. A client's time is the processor time of training and
of the answers to queries after the last round, over the images trained on; bytes are all from the clients.
The table goes to standard output, raw figures to results/longtail/costs.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from fashion import PROTOCOL as FASHION
from harness import Store, Turn, take, turns
from protocol import RESULTS, find_images, merged

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment

RIVALS = ("FedAvg", "longtail")


def experiment(rival: str) -> dict[str, Any]:
    """Return a rival's experiment; all have the same seed, clients and learning rate."""
    own = FASHION.methods[rival]
    return merged(FASHION.experiment, own.tables, {"seed": 0, "training": {"lr": 0.1}})


def measured(turn: Turn) -> dict[str, Any]:
    """Run a rival; return processor seconds a thousand images, and the megabytes sent in all rounds."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        result = simulate(ExperimentConfig.from_dict(experiment(turn.rival)), out=Path(folder) / "run")
        seconds = time.process_time() - begun
    images = sum(record["examples"] for record in result.rounds)
    return {
        "processor_s": seconds,
        "images": images,
        "megabytes_up": sum(record["bytes"]["up"] for record in result.rounds) / 1e6,
    }


def table(store: Store) -> str:
    """Return medians as Markdown, and the ratios of pairs of one repetition."""
    lines = ["| | processor time, s per 1,000 images | MB up | n |", "|---|---|---|---|"]
    found = {rival: [run for run in store.runs if run["rival"] == rival] for rival in RIVALS}
    per_image = {
        rival: [1000 * run["processor_s"] / run["images"] for run in runs] for rival, runs in found.items()
    }
    for rival, runs in found.items():
        cells = [
            f"{statistics.median(per_image[rival]):.3f}",
            f"{runs[0]['megabytes_up']:.1f}",
            str(len(runs)),
        ]
        lines.append(f"| {rival} | {' | '.join(cells)} |")
    ratios = [own / base for base, own in zip(*(per_image[rival] for rival in RIVALS), strict=False)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    bytes_ratio = found["longtail"][0]["megabytes_up"] / found["FedAvg"][0]["megabytes_up"]
    lines.append(f"time: {statistics.median(ratios):.2f} of FedAvg's ({spread}); bytes: {bytes_ratio:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="makes results/longtail/costs.json again")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    find_images()
    facts = {"environment": environment("cpu"), "experiments": [experiment(rival) for rival in RIVALS]}
    kept = Store(RESULTS / "costs.json", facts)
    take(
        kept,
        list(turns(["fashion"], RIVALS, options.repetitions)),
        measured,
        lambda line: print(line, flush=True),
        lambda run: f"{run['processor_s']:.1f} s, {run['megabytes_up']:.1f} MB",
    )
    print(table(kept))
