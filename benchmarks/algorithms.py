"""FedNTD and CCVR beside FedAvg where classes are rare and clients unlike.

    python benchmarks/algorithms.py [--seeds 3]

Fashion-MNIST with a long tail of 20 on 20 clients, ten of them a round, split by Dirichlet 0.3; the
CNN of width 8, 20 rounds of 20 steps, batches of 32, SGD 0.05 with a cosine schedule. Every method has the
same rounds; its own settings are fedvision's defaults, and for FedNTD also the temperature 1 of its authors'
experiments (github.com/Lee-Gihun/FedNTD, config/fedntd.json).
Nothing is chosen by a look at the test images. The table goes to standard output, raw figures to
benchmarks/results/algorithms.json; a command that was broken off goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comparison import SCORES, cells, compare, of
from harness import Store

SPLITS: Mapping[str, float] = {"Dirichlet 0.3": 0.3}
STRATEGIES: Mapping[str, dict[str, Any]] = {
    "fedavg": {"use": "fedavg"},
    "fedntd, tau 1": {"use": "fedntd", "tau": 1.0},
    "fedntd, tau 3": {"use": "fedntd", "tau": 3.0},
    "ccvr": {"use": "ccvr"},
}


def experiment(split: str, strategy: str, seed: int) -> dict[str, Any]:
    """Return the experiment of one run."""
    return {
        "name": "algorithms",
        "seed": seed,
        "rounds": 20,
        "checkpoint_every": 20,
        "data": {"use": "fashion-mnist"},
        "partition": {"use": "dirichlet", "clients": 20, "alpha": SPLITS[split], "imbalance": 20},
        "model": {"use": "cnn", "width": 8},
        "training": {"lr": 0.05, "batch_size": 32, "steps": 20, "schedule": "cosine"},
        "strategy": {**STRATEGIES[strategy], "fraction": 0.5},
        "evaluation": {"every": 20},
    }


def table(store: Store) -> str:
    """Return the runs as Markdown."""
    lines = [f"| split | strategy | {' | '.join(SCORES)} | n |", "|---|---|" + "---|" * (len(SCORES) + 1)]
    for split in SPLITS:
        for strategy in STRATEGIES:
            if runs := of(store, split, strategy):
                lines.append(f"| {split} | {strategy} | {' | '.join(cells(runs))} | {len(runs)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(compare("algorithms", experiment, list(SPLITS), list(STRATEGIES))))
