"""Some rounds of training the last blocks between two heads that are made in one round each.

    python benchmarks/after_one_round.py --tune                 # units and learning rates, on held-out images
    python benchmarks/after_one_round.py [--size 224] [--seeds 3]

The federation of one_round.py: CIFAR-10 with a long tail of 100 on 20 clients, split by Dirichlet 0.5,
EfficientNet-Lite0 with its ImageNet weights. A balanced ridge head is made in one round; from that model the
head and the last units of the backbone's eighteen are trained for nine rounds of FedAvg, ten steps of AdamW
a client, with logit adjustment by each client's own counts, frozen batch norms and mirrored images; in a
tenth round a balanced ridge head is made anew on the features as they are then, averaged with those of the
mirror image. What the frozen layers make of the images is computed once. ``--tune`` sets 200 training images
of each class aside before the long tail is cut, and measures on these and on no test image; of units and
learning rates, compared at 128 px, the best are used otherwise. Scores are of the 10,000 test images.

Needs what one_round.py needs; results go to results/after-one-round-SIZE.json and
after-one-round-tuning.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import Store, Turn, spread, take, turns
from one_round import SCORES, experiment, recalls, written

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
CLIENTS = 20
SETTINGS: Mapping[str, tuple[int, float]] = {
    "last:5, 0.0003": (5, 0.0003),
    "last:12, 0.0001": (12, 0.0001),
    "last:12, 0.0003": (12, 0.0003),
}
"""Last units of the backbone that are trained (blocks and the last convolution), and learning rates."""
ROUNDS, TUNING_SIZE = 9, 128
"""Rounds of training; and pixels a side with which settings are compared."""
SET_ASIDE = 0.04
"""Of 5,000 training images of a class, where settings are compared."""
FROZEN = ["backbone.*.norm.*"]
HEAD = {"head": "ridge", "regularization": 1.0, "scale": 10.0}
TRAINING = {"optimizer": "adamw", "momentum": 0.0, "steps": 10, "clip_norm": 1.0, "schedule": "cosine"}


def start(size: int, seed: int, units: int, **tables: Any) -> ExperimentConfig:
    """Return the experiment that makes a head on the features of the network as it comes."""
    model = {"train": f"last:{units}", "frozen": FROZEN}
    return experiment(size, "balanced ridge", seed, strategy=HEAD, model=model, **tables)


def further(size: int, seed: int, units: int, lr: float, weights: str, **tables: Any) -> ExperimentConfig:
    """Return the experiment that trains from a model."""
    return experiment(
        size,
        "logit-adjusted, global prior, SGD",
        seed,
        **tables,
        rounds=ROUNDS,
        checkpoint_every=ROUNDS,
        loss={"use": "logit-adjusted", "prior": "local"},
        model={"train": f"last:{units}", "frozen": FROZEN, "weights": weights},
        training={"lr": lr, **TRAINING},
        transforms={"flip": True, "views": 2},
        evaluation={"every": ROUNDS},
    )


def end(size: int, seed: int, weights: str, **tables: Any) -> ExperimentConfig:
    """Return the experiment that makes a head on the features of a run's network."""
    model = {"train": "head", "weights": weights, "mirrored": True}
    return experiment(size, "balanced ridge", seed, strategy=HEAD, model=model, **tables)


def trained(size: int, seed: int, setting: str, *, tuning: bool) -> dict[str, Any]:
    """Make the head, train from it, make it anew, and return recalls after each, bytes and seconds."""
    keep = {"data": {"validation": SET_ASIDE * tuning}}
    units, lr = SETTINGS[setting]
    with tempfile.TemporaryDirectory() as folder:
        begun, trained = (str(Path(folder) / name) for name in ("start", "further"))
        clock = time.perf_counter()
        runs = [simulate(start(size, seed, units, **keep), out=begun)]
        runs.append(simulate(further(size, seed, units, lr, begun, **keep), out=trained))
        runs.append(simulate(end(size, seed, trained, **keep), out=Path(folder) / "end"))
        seconds = time.perf_counter() - clock
    found = [recalls(one.rounds[-1]) for one in runs]
    return {
        "balanced_accuracy": 100 * statistics.mean(found[-1]),
        "recalls": found,
        "bytes_up": [sum(record["bytes"]["up"] for record in one.rounds) / CLIENTS for one in runs],
        "wall_s": seconds,
    }


def best() -> str:
    """Return the setting with the best score on images set aside."""
    runs = json.loads((RESULTS / "after-one-round-tuning.json").read_text())["runs"]
    return str(max(runs, key=lambda run: run["balanced_accuracy"])["rival"])


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return runs of one setting as Markdown; bytes are those up to a row's model."""
    lines = [f"| model | rounds | {' | '.join(SCORES)} | MB up a client | n |", "|---|" + "---|" * 7]
    setting = runs[0]["rival"] if runs else ""
    names = {"a head": 1, f"trained from it: {setting}": ROUNDS, "its head made anew": 1}
    for place, (name, rounds) in enumerate(names.items()):
        found = [one["recalls"][place] for one in runs]
        cells = [spread([100 * statistics.mean(one) for one in found], ".1f")]
        for group in list(SCORES.values())[1:]:
            values = [100 * statistics.mean(one[label] for label in group) for one in found]
            cells.append(spread(values, ".1f"))
        sent = statistics.median(sum(one["bytes_up"][: place + 1]) for one in runs) / 1e6
        lines.append(f"| {name} | {rounds} | {' | '.join(cells)} | {sent:.1f} | {len(found)} |")
    seconds = statistics.median(one["wall_s"] for one in runs)
    return "\n".join([*lines, f"{seconds:.0f} s a seed, median"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="makes results/after-one-round-SIZE.json again")
    parser.add_argument("--tune", action="store_true", help="compare settings on images set aside")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--seeds", type=int, default=3, help="0 to one less (default: 3)")
    parser.add_argument("--only", default="", help="with --tune: settings whose names contain this")
    options = parser.parse_args()
    size = TUNING_SIZE if options.tune else options.size
    settings = [one for one in SETTINGS if options.only in one] if options.tune else [best()]
    name = "tuning" if options.tune else str(size)
    facts = {
        "environment": environment("cpu"),
        "experiments": [
            written(start(size, 0, 12)),
            written(further(size, 0, 12, 0.0003, "START")),
            written(end(size, 0, "FURTHER")),
        ],
    }
    store = Store(RESULTS / f"after-one-round-{name}.json", facts, several_machines=True)

    def measured(turn: Turn) -> dict[str, Any]:
        """Return what a run found."""
        return trained(size, turn.repetition, turn.rival, tuning=options.tune)

    take(
        store,
        list(turns(["CIFAR-10-LT"], settings, 1 if options.tune else options.seeds)),
        measured,
        lambda line: print(line, flush=True),
        lambda one: f"{one['balanced_accuracy']:.2f} %; {one['wall_s']:.0f} s",
    )
    for setting in settings:
        print(table([one for one in store.runs if one["rival"] == setting]))
