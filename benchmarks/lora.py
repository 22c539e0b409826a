"""What averaging adapters costs: LoRA beside its exact form, all tensors and the head alone.

    python benchmarks/lora.py [--rounds 10] [--seeds 0 1 2]

A `cnn` is trained on the first five classes of Fashion-MNIST and its backbone then fitted to the other five,
which are spread over 10 clients by Dirichlet 0.1; 20 local steps a round, all clients. Same seed, same split,
first weights and mini-batches. Each way has the learning rate that is best on a fifth of each client's images
that is kept out of training, with seed 100, which is none of the seeds measured. The table goes to standard
output, the raw figures to benchmarks/results/lora.json.
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
import numpy as np
from harness import spread
from safetensors.torch import load_file, save_file

from fedvision import ExperimentConfig, registry, simulate
from fedvision.data.dataset import ImageSet
from fedvision.errors import RunError
from fedvision.models.state import size_in_bytes
from fedvision.runs.environment import environment
from fedvision.types import PluginSpec

RESULTS = Path(__file__).parent / "results"
CLIENTS = 10
WAYS: Mapping[str, dict[str, Any]] = {
    "all tensors": {},
    "the head": {"frozen": ["backbone.*"]},
    "LoRA": {"train": "lora", "lora": {"rank": 8}},
    "LoRA, exact": {"train": "lora", "lora": {"rank": 8, "exact": True}},
}
RATES = (0.1, 0.2, 0.4)


def halves(folder: Path) -> list[Path]:
    """Write Fashion-MNIST's classes 0 to 4 and 5 to 9 as files of their own; return these."""
    found, files = registry.build("data", PluginSpec(use="fashion-mnist")), []
    for first in (0, 5):
        arrays = {}
        for part, images in (("train", found.train), ("test", found.test)):
            assert isinstance(images, ImageSet)
            own = (np.asarray(images.labels) // 5) * 5 == first
            arrays |= {f"{part}_images": np.asarray(images.images)[own]}
            arrays |= {f"{part}_labels": np.asarray(images.labels)[own] - first}
        files.append(folder / f"classes-from-{first}.npz")
        np.savez(files[-1], **arrays)
    return files


def backbone(file: Path, folder: Path) -> Path:
    """Train a network on a file's classes in one place and keep its backbone."""
    table = {
        "name": "backbone",
        "rounds": 3,
        "data": {"use": "npz", "path": str(file)},
        "partition": {"clients": 1},
        "model": {"use": "cnn", "width": 8},
        "training": {"lr": 0.05, "momentum": 0.9, "batch_size": 64},
    }
    result = simulate(ExperimentConfig.from_dict(table), out=folder / "backbone")
    print(f"the backbone's own classes: {result.scores['accuracy']:.3f}", flush=True)
    state = load_file(folder / "backbone/model.safetensors")
    path = folder / "backbone.safetensors"
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("head.")}, path)
    return path


def experiment(
    way: str, seed: int, lr: float, rounds: int, *, file: Path, weights: Path, holdout: float = 0.0
) -> ExperimentConfig:
    """Return the experiment of one run."""
    return ExperimentConfig.from_dict(
        {
            "name": "lora",
            "seed": seed,
            "rounds": rounds,
            "data": {"use": "npz", "path": str(file)},
            "partition": {"use": "dirichlet", "clients": CLIENTS, "alpha": 0.1},
            "model": {"use": "cnn", "width": 8, "weights": str(weights), **WAYS[way]},
            "training": {"lr": lr, "batch_size": 32, "steps": 20},
            "evaluation": {"every": rounds, "holdout": holdout},
        }
    )


def measure(config: ExperimentConfig) -> dict[str, float]:
    """Run an experiment; return the last model's accuracy and a client's bytes a round.

    The accuracy is that on the images that clients keep out of training, else on the test images; a learning
    rate with which a client diverges has none.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = simulate(config, out=Path(folder) / "run")
        except RunError as error:
            if not config.evaluation.holdout or "diverged" not in str(error):
                raise
            return {"accuracy": 0.0, "bytes": 0}
    if config.evaluation.holdout and any(record["refused"] for record in result.rounds):
        # Clients that diverge are set aside, and the others alone measure.
        return {"accuracy": 0.0, "bytes": 0}
    where = result.rounds[-1]["local" if config.evaluation.holdout else "server"]
    return {"accuracy": where["scores"]["accuracy"], "bytes": size_in_bytes(result.state)}


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the runs as Markdown: mean ± sample deviation over seeds, in percent."""
    lines = [
        "| trained | learning rate | kB up a client and round | accuracy, % | n |",
        "|---|---|---|---|---|",
    ]
    for way in WAYS:
        own = [run for run in runs if run["way"] == way]
        accuracy = spread([100 * run["accuracy"] for run in own], ".1f")
        lines.append(f"| {way} | {own[0]['lr']} | {own[0]['bytes'] / 1e3:.1f} | {accuracy} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Run all, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    os.environ["FEDVISION_DATA"] = str(environments.images())
    chosen, runs = [], []
    with tempfile.TemporaryDirectory() as name:
        first, second = halves(Path(name))
        files = {"file": second, "weights": backbone(first, Path(name))}
        for way in WAYS:
            tried = [
                (measure(experiment(way, 100, lr, options.rounds, **files, holdout=0.2)), lr) for lr in RATES
            ]
            chosen += [{"way": way, "lr": lr, **found} for found, lr in tried]
            best = max(tried, key=lambda one: one[0]["accuracy"])[1]
            print(way, [(lr, round(found["accuracy"], 3)) for found, lr in tried], flush=True)
            for seed in options.seeds:
                found = measure(experiment(way, seed, best, options.rounds, **files))
                runs.append({"way": way, "seed": seed, "lr": best, **found})
                print(way, seed, found, flush=True)
    print(table(runs))
    facts = {"environment": environment(), "rounds": options.rounds, "rates": chosen, "runs": runs}
    (RESULTS / "lora.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
