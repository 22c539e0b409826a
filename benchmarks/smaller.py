"""Small networks of large ones: distilled from a fusion, pruned from a larger CNN, trained alone.

    python benchmarks/smaller.py [--seeds 3] [--runs FOLDER]

Fashion-MNIST with a long tail of 100 on 20 clients, split by Dirichlet 0.3, five of them a round, loss with
logit adjustment by the federation's class counts. The teacher is a gated fusion; the small network is a CNN
of half the usual width. It is trained alone, in as many rounds; distilled from the fusion (``distillation``);
and made from a CNN of twice its width by pruning and fine-tuning for a third of the rounds. Of each: numbers,
bytes of the file, processor time an image on one thread, one at a time and 32 at a time, balanced accuracy,
the rarest three classes and the worst class on the 10,000 test images, which the last model sees once. The
settings (alpha, tau, rate, epochs) were chosen with seed 1 on a tenth of the training images set aside.

Needs Fashion-MNIST and the extras ``prune`` and ``export``; run folders are kept where ``--runs`` says, so
that a network that is there is not trained again. Results go to results/smaller.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import Store, Turn, spread, take, turns

import fedvision
from fedvision import ExperimentConfig, pruning, registry, simulate
from fedvision.export.measurement import Labelled
from fedvision.export.other_runs import compare
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
ROUNDS = 40
FUSION = {
    "use": "fusion",
    "extractor": "cnn",
    "join": "gated",
    "dim": 64,
    "depth": 2,
    "heads": 4,
    "patch": 7,
}
LARGE, SMALL = {"use": "cnn", "width": 32, "dense": 128}, {"use": "cnn", "width": 16, "dense": 64}
TEACHER_TRAINING = {"lr": 0.001, "epochs": 1}
TRAINING = {"lr": 0.003, "epochs": 2}
DISTILLATION = {"use": "distillation", "alpha": 0.9, "tau": 2.0, "fraction": 0.25}
RIVALS = (
    "fusion",
    "CNN",
    "small CNN",
    "small CNN, distilled from the fusion",
    "small CNN, pruned from the CNN",
)


def experiment(
    model: Mapping[str, Any], seed: int, training: Mapping[str, Any], **tables: Any
) -> ExperimentConfig:
    """Return the experiment with a network."""
    base: dict[str, Any] = {
        "name": "smaller",
        "seed": seed,
        "rounds": ROUNDS,
        "data": {"use": "fashion-mnist"},
        "partition": {"use": "dirichlet", "clients": 20, "alpha": 0.3, "imbalance": 100},
        "model": dict(model),
        "loss": {"use": "logit-adjusted", "prior": "global"},
        "training": {
            "optimizer": "adamw",
            "momentum": 0.0,
            "batch_size": 32,
            "clip_norm": 1.0,
            "schedule": "cosine",
            **training,
        },
        "strategy": {"use": "fedavg", "fraction": 0.25},
        "evaluation": {"every": ROUNDS},
        "checkpoint_every": ROUNDS,
    }
    return ExperimentConfig.from_dict(base | tables)


def trained(rival: str, seed: int, runs: Path) -> Path:
    """Return the run folder of a network, trained where it is not there."""
    folder = runs / f"{rival.replace(',', '').replace(' ', '-')}-{seed}"
    if (folder / "model.json").exists():
        return folder
    match RIVALS.index(rival):
        case 0:
            config = experiment(FUSION, seed, TEACHER_TRAINING)
        case 1:
            config = experiment(LARGE, seed, TRAINING)
        case 2:
            config = experiment(SMALL, seed, TRAINING)
        case 3:
            taught = {**DISTILLATION, "teacher": str(trained(RIVALS[0], seed, runs))}
            config = experiment(SMALL, seed, TRAINING, strategy=taught)
        case _:
            start = runs / f"pruned-{seed}"
            if not start.exists():
                pruning.prune(trained(RIVALS[1], seed, runs), 0.5, start)
            config = ExperimentConfig.load(start / pruning.EXPERIMENT, ["evaluation.every=1"])
    simulate(config, out=folder, resume=True)
    return folder


def measured(turn: Turn, runs: Path) -> dict[str, Any]:
    """Train what is not there; return scores, size and processor time of all networks of a seed."""
    folders = [trained(rival, turn.repetition + 1, runs) for rival in RIVALS]
    models = [fedvision.load(folder, device="cpu") for folder in folders]
    dataset = registry.build("data", experiment(SMALL, 1, TRAINING).data)
    shard, _ = models[0].labelled(dataset)
    found = compare(models[0], models[1:], Labelled(shard, "test images of fashion-mnist"))
    rows = {}
    for rival, version, model in zip(RIVALS, found, models, strict=True):
        rows[rival] = {
            "tail": model.evaluate(dataset).scores["tail"],
            "numbers": sum(parameter.numel() for parameter in model.network.parameters()),
            **{key: getattr(version, key) for key in _KEYS},
        }
    return {"rows": rows}


_KEYS = ("balanced_accuracy", "worst_class", "worst_recall", "bytes", "latency_ms")


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the networks as Markdown, means and deviations over seeds, medians of times."""
    lines = [
        "| network | numbers | file | ms an image, 1 / 32 at once | balanced | rarest 3 | worst class | n |",
        "|---|" + "---|" * 7,
    ]
    for rival in RIVALS:
        rows = [run["rows"][rival] for run in runs]
        cells = [f"{rows[0]['numbers']:,}", f"{rows[0]['bytes'] / 1000:.0f} kB"]
        times = (statistics.median(row["latency_ms"][batch] for row in rows) for batch in ("1", "32"))
        cells.append(" / ".join(f"{one:.3f}" for one in times))
        for key in ("balanced_accuracy", "tail", "worst_recall"):
            cells.append(spread([100 * row[key] for row in rows], ".1f"))
        lines.append(f"| {rival} | {' | '.join(cells)} | {len(rows)} |")
    differences = [
        100 * (run["rows"][RIVALS[3]]["balanced_accuracy"] - run["rows"][RIVALS[0]]["balanced_accuracy"])
        for run in runs
    ]
    return "\n".join(
        [*lines, f"distilled minus fusion, of the same seed: {spread(differences, '+.1f')} points"]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="makes results/smaller.json again")
    parser.add_argument("--seeds", type=int, default=3, help="1 to this (default: 3)")
    parser.add_argument("--runs", type=Path, default=Path("runs/smaller"), help="folder of the run folders")
    options = parser.parse_args()
    taught = {**DISTILLATION, "teacher": "FUSION"}
    facts = {
        "environment": environment("cpu"),
        "experiments": [
            experiment(FUSION, 1, TEACHER_TRAINING).to_dict(),
            experiment(LARGE, 1, TRAINING).to_dict(),
            experiment(SMALL, 1, TRAINING).to_dict(),
            experiment(SMALL, 1, TRAINING, strategy=taught).to_dict(),
        ],
    }
    store = Store(RESULTS / "smaller.json", facts)
    plan = list(turns(["Fashion-MNIST, long tail"], ["all"], options.seeds))
    take(
        store,
        plan,
        partial(measured, runs=options.runs),
        describe=lambda run: f"{len(run['rows'])} networks",
    )
    print(table([run for turn in plan if (run := store.find(turn))]))
