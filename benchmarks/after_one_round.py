"""Some rounds of training the last blocks, from a head that was made in one round.

    python benchmarks/after_one_round.py --tune                 # learning rates on held-out images, at 64 px
    python benchmarks/after_one_round.py [--size 224] [--seeds 3]

The federation of one_round.py: CIFAR-10 with a long tail of 100 on 20 clients, split by Dirichlet 0.5,
EfficientNet-Lite0 with its ImageNet weights. A balanced LDA head is made in one round; from that model the
head and the last five units of the backbone are trained for ten rounds of FedAvg, ten steps a client, with
logit adjustment by the federation's counts, frozen batch norms and no augmentation. What the frozen layers
make of the images is computed once. ``--tune`` trains without a fifth of each client's images and measures on
these; its best learning rate is the one used otherwise. Scores are of the last round's model on the 10,000
test images.

Needs what one_round.py needs; results go to results/after-one-round-SIZE.json and after-one-round-rates.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Store, Turn, spread, take, turns
from one_round import SCORES, experiment, recalls, written

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
RATES = (0.0003, 0.001, 0.003)
TUNED_AT = 64
"""Pixels a side of the images on which learning rates are compared."""
UNITS = 5
"""Last units of the backbone that are trained: four blocks and the last convolution."""
STEPS = 10
"""Steps on 32 images that a client takes in a round."""
HEAD = {"head": "lda", "shrinkage": 0.5}


def start(size: int, seed: int, **tables: Any) -> ExperimentConfig:
    """Return the experiment that makes the head."""
    return experiment(size, "balanced LDA", seed, strategy=HEAD, **tables)


def further(size: int, seed: int, lr: float, weights: str, **tables: Any) -> ExperimentConfig:
    """Return the experiment that trains from a model."""
    return experiment(
        size,
        "logit-adjusted, global prior, SGD",
        seed,
        **tables,
        rounds=10,
        checkpoint_every=10,
        model={"weights": weights, "train": f"last:{UNITS}", "frozen": ["backbone.*.norm.*"]},
        training={"lr": lr, "steps": STEPS, "clip_norm": 1.0},
    )


def trained(size: int, seed: int, lr: float, *, tuning: bool) -> dict[str, Any]:
    """Make the head, train from it, and return scores of both, bytes and seconds."""
    keep = {"evaluation": {"holdout": 0.2 * tuning}}
    with tempfile.TemporaryDirectory() as folder:
        begun = simulate(start(size, seed, **keep), out=Path(folder) / "start")
        clock = time.perf_counter()
        found = simulate(
            further(size, seed, lr, str(Path(folder) / "start"), **keep), out=Path(folder) / "run"
        )
        seconds = time.perf_counter() - clock
    last = found.rounds[-1]
    score = last["local"]["scores"]["balanced_accuracy"] if tuning else statistics.mean(recalls(last))
    return {
        "balanced_accuracy": 100 * score,
        "recalls": None if tuning else recalls(last),
        "start": None if tuning else recalls(begun.rounds[-1]),
        "bytes_up": sum(record["bytes"]["up"] for record in found.rounds) / len(last["clients"]),
        "wall_s": seconds,
    }


def best_rate() -> float:
    """Return the learning rate with the best score on held-out images."""
    runs = json.loads((RESULTS / "after-one-round-rates.json").read_text())["runs"]
    return float(max(runs, key=lambda run: run["balanced_accuracy"])["rival"])


def table(store: Store) -> str:
    """Return the runs as Markdown."""
    lines = [f"| model | {' | '.join(SCORES)} | MB up a client | s | n |", "|---|" + "---|" * 7]
    for name, key in (("the head, one round", "start"), (f"last:{UNITS}, 10 rounds", "recalls")):
        cells = [spread([100 * statistics.mean(one[key]) for one in store.runs], ".1f")]
        for group in list(SCORES.values())[1:]:
            values = [100 * statistics.mean(one[key][label] for label in group) for one in store.runs]
            cells.append(spread(values, ".1f"))
        up, took = (statistics.median(one[key] for one in store.runs) for key in ("bytes_up", "wall_s"))
        cost = f"{up / 1e6:.1f} | {took:.0f}" if key == "recalls" else "4.2 | "
        lines.append(f"| {name} | {' | '.join(cells)} | {cost} | {len(store.runs)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="makes results/after-one-round-SIZE.json again")
    parser.add_argument("--tune", action="store_true", help="compare learning rates on held-out images")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--seeds", type=int, default=3, help="0 to one less (default: 3)")
    options = parser.parse_args()
    size = TUNED_AT if options.tune else options.size
    rates = RATES if options.tune else (best_rate(),)
    name = "rates" if options.tune else str(size)
    facts = {
        "environment": environment("cpu"),
        "experiments": [written(start(size, 0)), written(further(size, 0, rates[0], "START"))],
    }
    store = Store(RESULTS / f"after-one-round-{name}.json", facts)

    def measured(turn: Turn) -> dict[str, Any]:
        """Return what a run found."""
        return trained(size, turn.repetition, float(turn.rival), tuning=options.tune)

    take(
        store,
        list(turns(["CIFAR-10-LT"], [f"{rate:g}" for rate in rates], 1 if options.tune else options.seeds)),
        measured,
        lambda line: print(line, flush=True),
        lambda one: f"{one['balanced_accuracy']:.2f} %; {one['wall_s']:.0f} s",
    )
    if not options.tune:
        print(table(store))
