"""Some rounds of training the last blocks between two heads that are made in one round each.

    python benchmarks/after_one_round.py --tune                 # learning rates, on held-out images
    python benchmarks/after_one_round.py [--size 224] [--seeds 3]

The federation of one_round.py: CIFAR-10 with a long tail of 100 on 20 clients, split by Dirichlet 0.5,
EfficientNet-Lite0 with its ImageNet weights. A balanced ridge head is made in one round; from that model the
head and the last five units of the backbone are trained for nine rounds of FedAvg, ten steps of AdamW a
client, with logit adjustment by each client's own counts, frozen batch norms and no augmentation; in the
tenth round a balanced ridge head is made anew on the features as they are then. What the frozen layers make
of the images is computed once. ``--tune`` trains without a fifth of each client's images and measures on
these; its best learning rate, after three rounds at 128 px, is the one used otherwise. Scores are of the
10,000 test images.

Needs what one_round.py needs; results go to results/after-one-round-SIZE.json and after-one-round-rates.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import Store, Turn, spread, take, turns
from one_round import SCORES, experiment, recalls, written

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
CLIENTS = 20
RATES = (0.0001, 0.0003)
UNITS = 5
"""Last units of the backbone that are trained: four blocks and the last convolution."""
ROUNDS, TUNING = 9, {"size": 128, "rounds": 3}
"""Rounds of training; and pixels a side and rounds of training with which learning rates are compared."""
PART = {"train": f"last:{UNITS}", "frozen": ["backbone.*.norm.*"]}
HEAD = {"head": "ridge", "regularization": 1.0, "scale": 10.0}
ADAMW = {"optimizer": "adamw", "momentum": 0.0, "steps": 10, "clip_norm": 1.0}


def closed(size: int, seed: int, weights: str = "", **tables: Any) -> ExperimentConfig:
    """Return the experiment that makes a head on the features of the network as it comes, or of a run's."""
    model = {**PART, "weights": weights} if weights else PART
    return experiment(size, "balanced ridge", seed, strategy=HEAD, model=model, **tables)


def further(size: int, seed: int, lr: float, weights: str, rounds: int, **tables: Any) -> ExperimentConfig:
    """Return the experiment that trains from a model."""
    return experiment(
        size,
        "logit-adjusted, global prior, SGD",
        seed,
        **tables,
        rounds=rounds,
        checkpoint_every=rounds,
        loss={"use": "logit-adjusted", "prior": "local"},
        model={**PART, "weights": weights},
        training={"lr": lr, **ADAMW},
    )


def trained(size: int, seed: int, lr: float, *, tuning: bool) -> dict[str, Any]:
    """Make the head, train from it, make it anew, and return scores after each, bytes and seconds."""
    keep = {"evaluation": {"holdout": 0.2 * tuning}}
    rounds = TUNING["rounds"] if tuning else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        start, middle = (str(Path(folder) / name) for name in ("start", "middle"))
        clock = time.perf_counter()
        runs = [simulate(closed(size, seed, **keep), out=start)]
        runs.append(simulate(further(size, seed, lr, start, rounds, **keep), out=middle))
        runs.append(simulate(closed(size, seed, middle, **keep), out=Path(folder) / "end"))
        seconds = time.perf_counter() - clock
    scores = [_score(one.rounds[-1], tuning) for one in runs]
    return {
        "balanced_accuracy": scores[-1],
        "after_each": scores,
        "recalls": [] if tuning else [recalls(one.rounds[-1]) for one in runs],
        "bytes_up": [sum(record["bytes"]["up"] for record in one.rounds) / CLIENTS for one in runs],
        "wall_s": seconds,
    }


def _score(record: Mapping[str, Any], tuning: bool) -> float:
    """Return the balanced accuracy, in percent, on held-out images or on the test images."""
    if tuning:
        return float(100 * record["local"]["scores"]["balanced_accuracy"])
    return 100 * statistics.mean(recalls(record))


def best_rate() -> float:
    """Return the learning rate with the best score on held-out images."""
    runs = json.loads((RESULTS / "after-one-round-rates.json").read_text())["runs"]
    return float(max(runs, key=lambda run: run["balanced_accuracy"])["rival"])


def table(store: Store) -> str:
    """Return the runs as Markdown; bytes are those up to a row's model."""
    lines = [f"| model | rounds | {' | '.join(SCORES)} | MB up a client | n |", "|---|" + "---|" * 7]
    names = {"a head": 1, f"last:{UNITS}, trained from it": ROUNDS, "its head made anew": 1}
    for place, (name, rounds) in enumerate(names.items()):
        found = [one["recalls"][place] for one in store.runs]
        cells = [spread([100 * statistics.mean(one) for one in found], ".1f")]
        for group in list(SCORES.values())[1:]:
            values = [100 * statistics.mean(one[label] for label in group) for one in found]
            cells.append(spread(values, ".1f"))
        sent = statistics.median(sum(one["bytes_up"][: place + 1]) for one in store.runs) / 1e6
        lines.append(f"| {name} | {rounds} | {' | '.join(cells)} | {sent:.1f} | {len(found)} |")
    seconds = statistics.median(one["wall_s"] for one in store.runs)
    return "\n".join([*lines, f"{seconds:.0f} s a seed, median"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="makes results/after-one-round-SIZE.json again")
    parser.add_argument("--tune", action="store_true", help="compare learning rates on held-out images")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--seeds", type=int, default=3, help="0 to one less (default: 3)")
    options = parser.parse_args()
    size = TUNING["size"] if options.tune else options.size
    rates = RATES if options.tune else (best_rate(),)
    name = "rates" if options.tune else str(size)
    facts = {
        "environment": environment("cpu"),
        "experiments": [
            written(closed(size, 0)),
            written(further(size, 0, rates[0], "START", ROUNDS)),
            written(closed(size, 0, "MIDDLE")),
        ],
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
