"""What update transforms save and what they cost, rare classes apart.

    python benchmarks/compression.py [--seeds 3]

Fashion-MNIST with a long tail of 20, 100 clients, Dirichlet 0.1, 10 clients a round, 40 rounds, the CNN of
width 8, FedAvg on the serial engine. The bytes are those of the tensors that clients send in a round, beside
those of whole models; ``tail`` is the mean recall of the rarest classes after the last round. Nothing is
chosen by a look at the test images. The table goes to standard output, raw figures to
benchmarks/results/compression.json; a command that was broken off goes on where it stopped.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from comparison import SCORES, cells, compare, of
from harness import Store

SPLIT = "Dirichlet 0.1"
TOP_K = {"use": "top-k", "fraction": 0.01}
CHAINS: Mapping[str, list[Any]] = {
    "none": [],
    "float16": ["float16"],
    "top-k 0.01, float16": [TOP_K, "float16"],
    # About the median norm of the updates that seed 0 makes without it: half of them are shortened.
    "clip 0.5, top-k 0.01, float16": [{"use": "clip", "max_norm": 0.5}, TOP_K, "float16"],
    "top-k 0.01 without error feedback, float16": [{**TOP_K, "error_feedback": False}, "float16"],
}


def experiment(split: str, update: str, seed: int) -> dict[str, Any]:
    """Return the experiment of one run."""
    return {
        "name": "compression",
        "seed": seed,
        "rounds": 40,
        "checkpoint_every": 40,
        "data": {"use": "fashion-mnist"},
        "partition": {"use": "dirichlet", "clients": 100, "alpha": 0.1, "imbalance": 20},
        "model": {"use": "cnn", "width": 8},
        "training": {"lr": 0.05, "batch_size": 32},
        "strategy": {"use": "fedavg", "fraction": 0.1},
        "evaluation": {"every": 40},
        "update": CHAINS[update],
    }


def table(store: Store) -> str:
    """Return the runs as Markdown."""
    lines = [
        f"| `[[update]]` | kB up a round | of whole models | {' | '.join(SCORES)} | n |",
        "|---|---|---|" + "---|" * (len(SCORES) + 1),
    ]
    for chain in CHAINS:
        if runs := of(store, SPLIT, chain):
            up, whole = (statistics.mean([n for run in runs for n in run[key]]) for key in ("up", "up_whole"))
            row = [f"{up / 1000:,.1f}", f"{up / whole:.4f}", *cells(runs), str(len(runs))]
            lines.append(f"| {chain} | {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(compare("compression", experiment, [SPLIT], list(CHAINS))))
