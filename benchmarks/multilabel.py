"""Several labels an image: losses compared where labels have a long tail.

The images are composed: two or three pictures of Fashion-MNIST, of different classes, halved to 14 x 14, in
the quarters of a canvas of 28 x 28. In the training images the classes are drawn with odds that fall
geometrically from 1 to 1/50; in the test images they are drawn alike, so that every label has enough of them.

    python benchmarks/multilabel.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedvision import registry, simulate
from fedvision.config import ExperimentConfig
from fedvision.types import PluginSpec

LOSSES = ("binary-cross-entropy", "class-balanced", "asymmetric")
SEEDS = (0, 1, 2)
TRAIN, TEST, ODDS = 2000, 1000, 50.0
FIGURES = ("mean_ap", "tail", "macro_auroc", "macro_f1")


def compose(path: Path, seed: int) -> tuple[str, ...]:
    """Write an .npz file of composed images with labels [N, 10]; return the labels' names."""
    source = registry.build("data", PluginSpec(use="fashion-mnist"))
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for part, images, number, odds in (
        ("train", source.train, TRAIN, ODDS ** -(np.arange(10) / 9)),
        ("test", source.test, TEST, np.ones(10)),
    ):
        small = images.images[..., 0].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).astype(np.uint8)
        members = [np.flatnonzero(images.labels == label) for label in range(10)]
        canvas, labels = np.zeros((number, 28, 28), np.uint8), np.zeros((number, 10), np.uint8)
        for n in range(number):
            shown = rng.choice(10, rng.integers(2, 4), replace=False, p=odds / odds.sum())
            for label, quarter in zip(shown, rng.permutation(4), strict=False):
                top, left = 14 * (quarter // 2), 14 * (quarter % 2)
                canvas[n, top : top + 14, left : left + 14] = small[rng.choice(members[label])]
            labels[n, shown] = 1
        arrays |= {f"{part}_images": canvas, f"{part}_labels": labels}
    np.savez(path, **arrays)
    return tuple(source.classes)


def experiment(path: Path, classes: tuple[str, ...], loss: str, seed: int) -> ExperimentConfig:
    """Return the experiment of one loss and seed."""
    table = {
        "name": f"{loss}-{seed}",
        "seed": seed,
        "rounds": 12,
        "checkpoint_every": 12,
        "task": {"use": "multi-label"},
        "data": {"use": "npz", "path": str(path), "classes": list(classes)},
        "partition": {"use": "dirichlet", "clients": 10, "alpha": 0.5},
        "model": {"use": "cnn", "width": 16, "dense": 64},
        "loss": {"use": loss, "prior": "global"},
        "training": {"lr": 0.1, "momentum": 0.9, "epochs": 2},
        "strategy": {"use": "fedavg"},
        "evaluation": {"every": 12},
    }
    return ExperimentConfig.from_dict(table)


def main() -> None:
    """Print a table: mean and sample deviation over seeds of each loss's figures."""
    print("| loss | " + " | ".join(FIGURES) + " |\n|---|" + "---|" * len(FIGURES))
    with tempfile.TemporaryDirectory() as folder:
        names: dict[int, tuple[str, ...]] = {}
        for seed in SEEDS:
            names[seed] = compose(Path(folder) / f"{seed}.npz", seed)
        for loss in LOSSES:
            rows = []
            for seed in SEEDS:
                config = experiment(Path(folder) / f"{seed}.npz", names[seed], loss, seed)
                scores = simulate(config, engine="serial", out=Path(folder) / config.name).scores
                rows.append([scores[figure] for figure in FIGURES])
            mean, deviation = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
            cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(mean, deviation, strict=True)]
            print(f"| {loss} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
