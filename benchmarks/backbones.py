"""Networks from scratch, frozen, trained in part and fused, on one split of few and unbalanced photographs.

    python benchmarks/backbones.py [--tune] [--seeds 3] [--only frozen]

ELPV: 2,624 gray photographs of solar cells in four classes (1508, 295, 106, 715), a fifth of them the test
set; 8 clients, Dirichlet 1.0. Networks from scratch read 64 x 64 pixels, those with EfficientNet-Lite0's
ImageNet weights 128 x 128; networks from scratch and fusions have the settings of simulations/elpv.toml.
Trained heads and networks have logit adjustment by the federation's counts, but for the one with
cross-entropy. Regularization and shrinkage are chosen on a fifth of each client's training images, and so are
learning rates of SGD, by ``--tune``, with seed 100, which is none of the seeds measured. ``central`` trains
the head above it on all images in one place; the closed forms are the same to the bit there. Seeds do not
change the test set, nor what all clients' images are, so a closed form differs by what is chosen alone.

$FEDVISION_DATA (else ~/.cache/fedvision) must hold elpv, a folder with one sub-folder a class, and
weights/efficientnet_lite0.pth. Results go to results/backbones.json and backbones-rates.json.
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
from one_round import DATA, recalls, written

from fedvision import ExperimentConfig, simulate
from fedvision.experiment import Experiment
from fedvision.models.state import floating, size_in_bytes
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
RATES = (0.003, 0.01, 0.03, 0.1)
"""Learning rates of SGD among which is chosen."""
WEIGHTS = str(DATA / "weights/efficientnet_lite0.pth")
LITE = {"use": "efficientnet-lite0", "weights": WEIGHTS}
ADJUSTED = {"loss": {"use": "logit-adjusted", "prior": "global"}}
SCRATCH: dict[str, Any] = {
    **ADJUSTED,
    "rounds": 15,
    "transforms": {"flip": True, "crop": 4},
    "training": {"optimizer": "adamw", "lr": 0.003, "epochs": 3, "clip_norm": 1.0},
}
HEAD: dict[str, Any] = {"rounds": 60, "model": {**LITE, "train": "head"}}
VIEWS = {"flip": True, "views": 2}
PARTLY: dict[str, Any] = {**ADJUSTED, "rounds": 15}


def fused(train: str) -> dict[str, Any]:
    """Return the model of a Transformer that reads the tokens of an EfficientNet-Lite0."""
    part = {**LITE, "train": train}
    return {"use": "fusion", "extractor": part, "join": "gated", "dim": 64, "depth": 2, "heads": 4}


WAYS: Mapping[str, dict[str, Any]] = {
    "scratch: CNN": {**SCRATCH, "model": {"use": "cnn"}},
    "scratch: vision transformer": {**SCRATCH, "model": {"use": "vit", "patch": 8, "dim": 128, "depth": 6}},
    "scratch: fusion": {
        **SCRATCH,
        "model": {"use": "fusion", "extractor": "cnn", "join": "gated", "patch": 8, "dim": 64, "depth": 2},
    },
    "frozen: ridge, one round": {
        "strategy": {"use": "closed-form", "head": "ridge", "regularization": "auto"},
        "model": {**LITE, "train": "head"},
    },
    "frozen: LDA, one round": {
        "strategy": {"use": "closed-form", "head": "lda", "shrinkage": "auto"},
        "model": {**LITE, "train": "head"},
    },
    "frozen: cross-entropy": HEAD,
    "frozen: logit-adjusted": {**HEAD, **ADJUSTED},
    "central: logit-adjusted": {**HEAD, **ADJUSTED, "partition": {"use": "iid", "clients": 1}},
    "last:5": {**PARTLY, "transforms": VIEWS, "model": {**LITE, "train": "last:5"}},
    "LoRA": {**PARTLY, "transforms": {"flip": True}, "model": {**LITE, "train": "lora"}},
    "fusion: frozen extractor": {**SCRATCH, "transforms": VIEWS, "model": fused("none")},
    "fusion: LoRA in the extractor": {
        **SCRATCH,
        "transforms": {"flip": True},
        # With the rate of the others all images get one name after 15 rounds.
        "training": {**SCRATCH["training"], "epochs": 1, "lr": 0.0003},
        "model": fused("lora"),
    },
}


def experiment(way: str, seed: int, **tables: Any) -> ExperimentConfig:
    """Return the experiment of a way; some tables added to."""
    own, closed = not _by_sgd(way), "strategy" in WAYS[way]
    base: dict[str, Any] = {
        "name": "backbones",
        "seed": seed,
        "rounds": 1,
        "data": {
            "use": "image-folder",
            "path": str(DATA / "elpv"),
            "size": 64 if way.startswith("scratch") else 128,
            "channels": 1,
            "validation": 0.2,
        },
        "partition": {"use": "dirichlet", "clients": 8, "alpha": 1.0},
        "training": {"lr": 0.03, "momentum": 0.0 if own else 0.9},
    }
    if not own and not closed:
        base["training"]["schedule"] = "cosine"
    for changes in (WAYS[way], tables):
        for key, table in changes.items():
            whole = not isinstance(table, dict) or key == "partition"
            base[key] = table if whole else {**base.get(key, {}), **table}
    base["evaluation"] = {**base.get("evaluation", {}), "every": base["rounds"]}
    base["checkpoint_every"] = base["rounds"]
    return ExperimentConfig.from_dict(base)


def _by_sgd(way: str) -> bool:
    return not way.startswith(("scratch", "fusion"))


def run(config: ExperimentConfig) -> tuple[Mapping[str, Any], Any, dict[str, Any]]:
    """Run an experiment; return the last round's record, its strategy and what it cost."""
    built = Experiment.build(config)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        result = simulate(built, out=Path(folder) / "run")
        seconds = time.perf_counter() - begun
        last = result.rounds[-1]
        clients = max(1, len(last["clients"]))
        cost = {
            "parameters": sum(tensor.numel() for tensor in floating(built.model).values()),
            "trained": size_in_bytes(result.state) // 4,
            "bytes_up": sum(record["bytes"]["up"] for record in result.rounds) / clients,
            "wall_s": seconds,
        }
    return last, built.strategy, cost


def chosen(way: str, seed: int) -> dict[str, Any]:
    """Return the tables that were chosen on held-out images: of a closed form now, of SGD by ``--tune``."""
    strategy = WAYS[way].get("strategy")
    if strategy:
        _, built, _ = run(experiment(way, seed, evaluation={"holdout": 0.2}))
        return {"strategy": {built.inner.key: built.inner.chosen}}
    if not _by_sgd(way):
        return {}
    found = json.loads((RESULTS / "backbones-rates.json").read_text())["runs"]
    tried = [one for one in found if one["workload"] == way]
    return {"training": {"lr": float(max(tried, key=lambda one: one["balanced_accuracy"])["rival"])}}


def measured(turn: Turn) -> dict[str, Any]:
    """Run a way with what was chosen for it."""
    tables = chosen(turn.rival, turn.repetition)
    last, _, cost = run(experiment(turn.rival, turn.repetition, **tables))
    found = recalls(last)
    return {"chosen": tables, "balanced_accuracy": 100 * statistics.mean(found), "recalls": found, **cost}


def tried(turn: Turn) -> dict[str, Any]:
    """Run a way with a learning rate and measure it on what clients keep out of training."""
    tables = {"training": {"lr": float(turn.rival)}, "evaluation": {"holdout": 0.2}}
    last, _, cost = run(experiment(turn.workload, 100, **tables))
    return {"balanced_accuracy": 100 * last["local"]["scores"]["balanced_accuracy"], **cost}


def table(store: Store) -> str:
    """Return the runs as Markdown: mean ± sample deviation over seeds."""
    heads = ["network", "rounds", "balanced accuracy", "parameters", "trained", "MB up a client", "s", "n"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for way in WAYS:
        found = [one for one in store.runs if one["rival"] == way]
        if found:
            score = spread([one["balanced_accuracy"] for one in found], ".1f")
            up, took = (statistics.median(one[key] for one in found) for key in ("bytes_up", "wall_s"))
            counts = f"{found[0]['parameters']:,} | {found[0]['trained']:,}"
            rounds = WAYS[way].get("rounds", 1)
            lines.append(
                f"| {way} | {rounds} | {score} | {counts} | {up / 1e6:.2f} | {took:.0f} | {len(found)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="makes results/backbones.json again")
    parser.add_argument("--tune", action="store_true", help="compare learning rates on held-out images")
    parser.add_argument("--seeds", type=int, default=3, help="0 to one less (default: 3)")
    parser.add_argument("--only", default="", help="ways whose names contain this (default: all)")
    options = parser.parse_args()
    ways = [way for way in WAYS if options.only in way]
    facts = {
        "environment": environment("cpu"),
        "experiments": {way: written(experiment(way, 0)) for way in WAYS},
    }
    file = RESULTS / ("backbones-rates.json" if options.tune else "backbones.json")
    store = Store(file, facts, several_machines=True)
    if options.tune:
        tuned = [way for way in ways if _by_sgd(way) and "strategy" not in WAYS[way]]
        plan = list(turns(tuned, [f"{rate:g}" for rate in RATES], 1))
    else:
        plan = list(turns(["ELPV"], ways, options.seeds))
    take(
        store,
        plan,
        tried if options.tune else measured,
        lambda line: print(line, flush=True),
        lambda one: f"{one['balanced_accuracy']:.1f} %; {one.get('chosen')}; {one['wall_s']:.0f} s",
    )
    if not options.tune:
        print(table(store))
