"""What update transforms save and what they cost, rare classes apart.

    python benchmarks/compression.py [--rounds 40] [--seeds 0 1 2]

Fashion-MNIST with a long tail of 20, 100 clients, Dirichlet 0.1, 10 clients a round, the CNN, FedAvg on the
serial engine. The bytes are those of the tensors that clients send in a round, beside those of whole models;
``tail`` is the mean recall of the rarest classes. Table and raw figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment
from fedvision.runs.progress import Silent

RESULTS = Path(__file__).parent / "results"
TOP_K = {"use": "top-k", "fraction": 0.01}
CHAINS: Mapping[str, list[Any]] = {
    "none": [],
    "float16": ["float16"],
    "top-k 0.01": [TOP_K],
    "top-k 0.01, no feedback": [{**TOP_K, "error_feedback": False}],
    "clip 5, top-k 0.01, float16": [{"use": "clip", "max_norm": 5.0}, TOP_K, "float16"],
}


def experiment(update: Sequence[Any], seed: int, rounds: int) -> ExperimentConfig:
    """Return the experiment with one chain."""
    return ExperimentConfig.from_dict(
        {
            "name": "compression",
            "seed": seed,
            "rounds": rounds,
            "data": {"use": "fashion-mnist"},
            "partition": {"use": "dirichlet", "clients": 100, "alpha": 0.1, "imbalance": 20},
            "model": {"use": "cnn"},
            "training": {"lr": 0.05, "batch_size": 32},
            "strategy": {"use": "fedavg", "fraction": 0.1},
            "evaluation": {"every": rounds},
            "update": list(update),
        }
    )


def run(update: Sequence[Any], seed: int, rounds: int) -> dict[str, float]:
    """Return bytes a round and final scores."""
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(experiment(update, seed, rounds), out=Path(folder) / "run", progress=Silent())
    sent = [record["bytes"] for record in result.rounds]
    return {
        "up": statistics.mean(one["up"] for one in sent),
        "whole": statistics.mean(one.get("up_whole", one["up"]) for one in sent),
        "balanced": result.scores["balanced_accuracy"],
        "tail": result.scores["tail"],
    }


def table(figures: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return means over seeds, with the spread from the worst to the best."""
    lines = ["| `[[update]]` | kB up a round | of whole models | balanced accuracy | tail |"]
    lines += ["|---|---|---|---|---|"]
    for name, rows in figures.items():
        share = rows[0]["up"] / rows[0]["whole"]
        cells = [f"{rows[0]['up'] / 1000:,.0f}", f"{share:.3f}"]
        for key in ("balanced", "tail"):
            values = [row[key] for row in rows]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run all chains for all seeds, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in CHAINS}
    for seed in options.seeds:
        for name, update in CHAINS.items():
            figures[name].append(run(update, seed, options.rounds))
            print(seed, name, figures[name][-1], flush=True)
    facts: dict[str, Any] = {"rounds": options.rounds, "seeds": options.seeds, "figures": figures}
    facts["environment"] = environment()
    (RESULTS / "compression.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
