"""What a round of a large network costs, whole and by adapters: memory, bytes and seconds.

    python benchmarks/large_models.py [--only vit] [--images 2] [--clients 10] [--threads 2]

A ViT-B/16 of torchvision with random weights at 224 pixels; each client takes one step of SGD on all of its
images, which hold noise, as nothing here depends on what they show. Serial engine; every row is a process of
its own, and its memory the most that this process held, Python and torch (about 0.4 GB) included. The table
goes to standard output, the raw figures to benchmarks/results/large-models.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedvision import ExperimentConfig, simulate
from fedvision.models.state import size_in_bytes
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results" / "large-models.json"
LINE = "RESULT "
NETWORKS: Mapping[str, dict[str, Any]] = {"vit": {"use": "torchvision/vit_b_16"}}
ADAPTERS = {"train": "lora", "lora": {"rank": 8, "targets": ["*.self_attention*"]}}
WAYS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all tensors": ({}, {}),
    "LoRA of attention": (ADAPTERS, {}),
    "LoRA of attention, activations computed anew": (ADAPTERS, {"checkpoint_activations": True}),
    "LoRA of all layers": ({"train": "lora", "lora": {"rank": 8}}, {}),
}
"""Keys of [model] and of [training]."""


def experiment(network: str, way: str, options: argparse.Namespace, file: Path) -> ExperimentConfig:
    """Return the experiment of one row."""
    model, training = WAYS[way]
    return ExperimentConfig.from_dict(
        {
            "name": "large-models",
            "rounds": 1,
            "data": {"use": "npz", "path": str(file)},
            "transforms": {"size": 224},
            "partition": {"use": "iid", "clients": options.clients},
            "model": {**NETWORKS[network], **model},
            "training": {"steps": 1, "batch_size": options.images, "lr": 0.001, "device": "cpu", **training},
            "evaluation": {"batch_size": options.images},
        }
    )


def child(options: argparse.Namespace) -> None:
    """Run one row and print what it cost."""
    rng = np.random.default_rng(0)
    count = options.images * options.clients
    arrays = {}
    for part, images in (("train", count), ("test", 10)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (images, 32, 32, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(images) % 10
    with tempfile.TemporaryDirectory() as name:
        np.savez(Path(name) / "noise.npz", **arrays)
        config = experiment(options.only, options.child, options, Path(name) / "noise.npz")
        result = simulate(config, out=Path(name) / "run", threads=options.threads)
        seconds = json.loads((Path(name) / "run/timings.jsonl").read_text())
        found = {
            "up": result.rounds[0]["bytes"]["up"] // options.clients,
            "state": size_in_bytes(result.state),
            "memory": result.folder.summary()["memory"]["process"],
            "seconds": seconds,
        }
    print(LINE + json.dumps(found), flush=True)


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as Markdown, bytes beside those of the first row."""
    heads = ["trained", "up a client and round", "of all tensors", "memory", "seconds a client"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    whole = runs[0]["up"]
    for run in runs:
        share = "1" if run["up"] == whole else f"1/{whole / run['up']:,.0f}"
        memory, up = f"{run['memory'] / 1e9:.2f} GB", f"{run['up'] / 1e6:,.2f} MB"
        seconds = run["seconds"]["train"] / run["clients"]
        lines.append(f"| {run['way']} | {up} | {share} | {memory} | {seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run all rows; print the table and keep the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=list(NETWORKS), default="vit")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    runs = []
    for way in WAYS:
        keys = [f"--{key}={getattr(options, key)}" for key in ("only", "images", "clients", "threads")]
        done = subprocess.run(
            [sys.executable, __file__, *keys, "--child", way], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.rpartition(LINE)[2])
        runs.append({"way": way, "clients": options.clients, **found})
        print(table(runs), flush=True)
        facts = {"environment": environment("cpu"), "images": options.images, "threads": options.threads}
        RESULTS.write_text(json.dumps({**facts, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
