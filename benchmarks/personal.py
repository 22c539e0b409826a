"""FedPer beside FedAvg where clients' classes differ: what a client's model reaches on its own images.

    python benchmarks/personal.py [--rounds 20] [--seeds 0 1 2]

Fashion-MNIST on 20 clients, split by Dirichlet 0.1 and into two classes a client; 10 local steps a round, all
clients. Clients measure on the fifth of their images that they hold out: the global model with FedAvg, each
its personal one with FedPer. Same seed, same split, first weights and mini-batches. The table goes to
standard output, the raw figures to benchmarks/results/personal.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import environments
from harness import spread

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
PARTITIONS: Mapping[str, dict[str, Any]] = {
    "Dirichlet 0.1": {"use": "dirichlet", "alpha": 0.1},
    "two classes a client": {"use": "shards", "classes_per_client": 2},
}
PERSONAL: Mapping[str, list[str]] = {"fedavg": [], "fedper": ["head.*"]}


def experiment(partition: str, strategy: str, seed: int, rounds: int) -> ExperimentConfig:
    """Return the experiment of one run."""
    return ExperimentConfig.from_dict(
        {
            "name": "personal",
            "seed": seed,
            "rounds": rounds,
            "data": {"use": "fashion-mnist"},
            "partition": {"clients": 20, **PARTITIONS[partition]},
            "model": {"use": "cnn", "width": 8, "personal": PERSONAL[strategy]},
            "training": {"lr": 0.05, "batch_size": 32, "steps": 10},
            "strategy": {"use": strategy},
            "evaluation": {"holdout": 0.2, "every": rounds},
        }
    )


def measure(config: ExperimentConfig) -> dict[str, float]:
    """Run an experiment; return shares of 1 of the clients' last measurement."""
    with tempfile.TemporaryDirectory() as folder:
        local = simulate(config, out=Path(folder) / "run").rounds[-1]["local"]
    spread = local["spread"]
    return {
        "accuracy": local["scores"]["accuracy"],
        "mean of clients": spread["mean"],
        "worst client": spread["worst"],
    }


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the runs as Markdown: mean ± sample deviation over seeds, in percent."""
    scores = list(runs[0]["scores"])
    lines = [
        f"| split | method | {' | '.join(f'{score}, %' for score in scores)} | n |",
        "|---|---|" + "---|" * (len(scores) + 1),
    ]
    for partition in PARTITIONS:
        for strategy in PERSONAL:
            own = [run for run in runs if (run["partition"], run["strategy"]) == (partition, strategy)]
            cells = [spread([100 * run["scores"][score] for run in own], ".1f") for score in scores]
            lines.append(f"| {partition} | {strategy} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Run all, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    os.environ["FEDVISION_DATA"] = str(environments.images())
    runs = []
    for partition in PARTITIONS:
        for seed in options.seeds:
            for strategy in PERSONAL:
                scores = measure(experiment(partition, strategy, seed, options.rounds))
                runs.append({"partition": partition, "strategy": strategy, "seed": seed, "scores": scores})
                print(partition, strategy, seed, scores, flush=True)
    print(table(runs))
    facts = {"environment": environment(), "rounds": options.rounds, "runs": runs}
    (RESULTS / "personal.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
