"""A round of a head behind a frozen backbone, on features that are kept and on images.

    python benchmarks/cached_features.py [--images 1000] [--size 64] [--clients 10] [--repetitions 3]

EfficientNet-Lite0 with random weights, ``model.train = "head"``, three rounds of FedAvg over all clients, one
epoch each in batches of 32, one thread. Images hold noise, as nothing here depends on what they show; each
run has a cache of its own, so the first computes its features. A round is the median of the rounds after the
first; ``features_s`` is what a run takes beside its rounds. The rivals take turns. Raw figures go to
results/cached-features-SIZE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import Store, Turn, take, turns

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
RIVALS = ("images", "features")
ENGINES = ("serial", "vectorized")


def experiment(options: argparse.Namespace, data: Path, *, cached: bool) -> ExperimentConfig:
    """Return the experiment of a run."""
    return ExperimentConfig.from_dict(
        {
            "name": "cached-features",
            "rounds": ROUNDS,
            "data": {"use": "npz", "path": str(data)},
            "partition": {"use": "iid", "clients": options.clients},
            "model": {"use": "efficientnet-lite0", "train": "head"},
            "training": {"batch_size": 32, "device": "cpu", "cache_features": cached},
        }
    )


def write_noise(path: Path, images: int, size: int) -> None:
    """Write training and test images of ten classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", images), ("test", images // 10)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 10
    np.savez(path, **arrays)


def measured(turn: Turn, options: argparse.Namespace) -> dict[str, Any]:
    """Run one rival on one engine and return its times in seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FEDVISION_CACHE"] = str(folder / "cache")
        write_noise(folder / "noise.npz", options.images, options.size)
        config = experiment(options, folder / "noise.npz", cached=turn.rival == "features")
        began = time.perf_counter()
        result = simulate(config, out=folder / "run", engine=turn.workload)
        wall = time.perf_counter() - began
        lines = (folder / "run/timings.jsonl").read_text().splitlines()
        rounds = [json.loads(line)["total"] for line in lines]
    return {
        "wall_s": wall,
        "rounds_s": rounds,
        "features_s": wall - sum(rounds),
        "round_s": statistics.median(rounds[1:]),
        "accuracy": result.scores["accuracy"],
    }


def table(store: Store) -> str:
    """Return the medians as Markdown."""
    lines = [
        "| engine | a round on images, s | on features, s | ratio | a run on images, s | on features, s |",
        "|---|---|---|---|---|---|",
    ]
    for engine in ENGINES:
        found = {
            rival: [run for run in store.runs if (run["workload"], run["rival"]) == (engine, rival)]
            for rival in RIVALS
        }
        if not all(found.values()):
            continue
        rounds, walls = (
            {rival: statistics.median(run[key] for run in runs) for rival, runs in found.items()}
            for key in ("round_s", "wall_s")
        )
        pairs = zip(found["features"], found["images"], strict=False)
        ratio = statistics.median(one["round_s"] / other["round_s"] for one, other in pairs)
        lines.append(
            f"| {engine} | {rounds['images']:.2f} | {rounds['features']:.3f} | **{ratio:.3f}** | "
            f"{walls['images']:.1f} | {walls['features']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Take the measurements that are missing and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="measure all anew")
    options = parser.parse_args()
    facts = {
        "environment": environment(),
        "images": options.images,
        "size": options.size,
        "clients": options.clients,
        "rounds": ROUNDS,
    }
    file = RESULTS / f"cached-features-{options.size}.json"
    if options.again:
        file.unlink(missing_ok=True)
    store = Store(file, facts)
    plan = list(turns(ENGINES, RIVALS, options.repetitions))
    take(store, plan, lambda turn: measured(turn, options), describe=lambda run: f"{run['round_s']:.2f} s")
    print(table(store))


if __name__ == "__main__":
    main()
