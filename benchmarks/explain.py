"""How faithful explanations are: deletion and insertion beside random maps, and what maps point at.

    python benchmarks/explain.py [--images 100] [--seed 0] [--home runs/explain] [--only cnn,lite0]

Trains what is not in ``--home`` yet: networks on Fashion-MNIST, EfficientNet-Lite0 with a head in closed form
on CIFAR-10, and networks on canvases of 56 x 56 pixels, black but for faint noise, with one item of
Fashion-MNIST in a place drawn by chance, in testing one of the four corners. Test images are drawn by
``--seed``. On canvases the pointing game (Zhang et al. 2016, arXiv 1608.00507) counts how often a map's
largest value lies in the item's 28 x 28 pixels, a quarter of the canvas. Figures are means over images with
standard errors; they go to benchmarks/results/explain.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fedvision
from fedvision import ExperimentConfig, simulate
from fedvision.errors import ConfigError
from fedvision.explanation import plan as plans
from fedvision.explanation.attention import RolloutProbe
from fedvision.explanation.result import Explanations
from fedvision.runs.environment import environment
from fedvision.trained_model import TrainedModel

RESULTS = Path(__file__).parent / "results"
CACHE = Path.home() / ".cache" / "fedvision"
ITEM, CANVAS = 28, 56
VIT = {"use": "vit", "dim": 64, "depth": 4, "heads": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "cnn": {"use": "cnn"},
    "resnet8": {"use": "resnet8"},
    "vit": {**VIT, "patch": 4},
    "fusion": {
        "use": "fusion", "extractor": "cnn", "join": "gated", "dim": 64, "depth": 2, "heads": 4, "patch": 7,
    },
    "rnn": {"use": "rnn"},
}  # fmt: skip
CANVASES = {"cnn": {"use": "cnn"}, "resnet8": {"use": "resnet8"}, "vit": {**VIT, "patch": 7}}
METHODS = ("hires-cam", "grad-cam", "attention-rollout", "plain rollout", "integrated-gradients")


def federation(name: str, data: dict[str, Any], model: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Return an experiment: four clients, two of which train in a round."""
    return {
        "name": name,
        "rounds": rounds,
        "data": data,
        "partition": {"use": "iid", "clients": 4, "imbalance": 20},
        "model": model,
        "training": {"optimizer": "adamw", "lr": 0.001, "epochs": 1, "batch_size": 32, "clip_norm": 1.0},
        "strategy": {"use": "fedavg", "fraction": 0.5},
        "evaluation": {"every": rounds},
    }


def pretrained() -> dict[str, Any]:
    """Return the experiment of EfficientNet-Lite0, which stays as it is."""
    return {
        "name": "lite0",
        "rounds": 1,
        "data": {"use": "npz", "path": str(CACHE / "cifar10.npz")},
        "partition": {"use": "dirichlet", "clients": 5, "alpha": 0.5, "imbalance": 100},
        "model": {
            "use": "efficientnet-lite0",
            "weights": str(CACHE / "weights" / "efficientnet_lite0.pth"),
            "frozen": ["backbone.*"],
        },
        "transforms": {"size": 128},
        "strategy": {"use": "closed-form", "regularization": "auto"},
        "evaluation": {"holdout": 0.2, "calibrate": True},
    }


def canvases(path: Path) -> None:
    """Write 12,000 and 2,000 canvases with the items' corners [N, 2] beside them."""
    if path.is_file():
        return
    archive, rng, found = np.load(CACHE / "fashion_mnist.npz"), np.random.default_rng(0), {}
    for part, count in (("train", 12_000), ("test", 2_000)):
        chosen = rng.choice(len(archive[f"{part}_labels"]), count, replace=False)
        # Of test canvases in a corner, or a map that always points at the middle would be right.
        corners = (
            rng.integers(0, CANVAS - ITEM + 1, (count, 2))
            if part == "train"
            else ((CANVAS - ITEM) * rng.integers(0, 2, (count, 2)))
        )
        images = rng.integers(0, 20, (count, CANVAS, CANVAS), np.uint8)
        items = archive[f"{part}_images"][chosen]
        for number, (row, column) in enumerate(corners):
            images[number, row : row + ITEM, column : column + ITEM] = items[number]
        found |= {f"{part}_images": images, f"{part}_labels": archive[f"{part}_labels"][chosen]}
        found[f"{part}_corners"] = corners
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **found)


def explained(model: TrainedModel, images: NDArray[np.uint8], method: str) -> Explanations | None:
    """Return explanations by a method, or None where it does not fit."""
    if method != "plain rollout":
        try:
            return model.explain(images, method=method)
        except ConfigError:
            return None
    weighted = plans.RolloutProbe
    plans.RolloutProbe = lambda layout: weighted(layout, weighted=False)  # type: ignore[assignment, misc]
    try:
        return model.explain(images, method="attention-rollout")
    except (ConfigError, AttributeError, TypeError):
        return None
    finally:
        plans.RolloutProbe = RolloutProbe  # type: ignore[misc]


def row(found: Explanations, seconds: float) -> dict[str, Any]:
    """Return the figures of one method."""
    record = found.to_record()
    shares = [one.branches["extractor"].share for one in found.each if one.branches]
    return {
        **record["mean"],
        "gains": [one.scores.gain for one in found.each],
        "better": float(np.mean([one.scores.gain > 0 for one in found.each])),
        "incomplete": sum(not one.complete for one in found.each),
        "extractor_share": float(np.mean([share for share in shares if share is not None]))
        if shares
        else None,
        "seconds_per_image": seconds / len(found),
    }


def show(name: str, method: str, one: dict[str, Any]) -> None:
    pointing = f"  points {one['points']:.2f}" if "points" in one else ""
    print(
        f"{name:<18}{method:<22} deletion {one['deletion']:.3f} ({one['random_deletion']:.3f})  insertion "
        f"{one['insertion']:.3f} ({one['random_insertion']:.3f})  gain {one['gain']:+.3f} +- "
        f"{one['gain_error']:.3f}  better {one['better']:.2f}{pointing}  {one['seconds_per_image']:.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="how faithful explanations are")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=Path("runs/explain"))
    parser.add_argument("--only", default="", help="names of networks, with commas between")
    parser.add_argument("--methods", default=",".join(METHODS), help="which, with commas between")
    options = parser.parse_args()
    torch.set_num_threads(1)
    board = options.home / "canvases.npz"
    canvases(board)
    plain, archive = {"use": "npz", "path": str(CACHE / "fashion_mnist.npz")}, CACHE / "fashion_mnist.npz"
    experiments = {name: (federation(name, plain, model, 8), archive) for name, model in NETWORKS.items()}
    experiments["lite0"] = (pretrained(), CACHE / "cifar10.npz")
    spread = {"use": "npz", "path": str(board)}
    for name, model in CANVASES.items():
        experiments[f"canvas-{name}"] = (federation(name, spread, model, 16), board)
    wanted = options.only.split(",") if options.only else list(experiments)
    for name in wanted:
        config, source = experiments[name]
        folder = options.home / name
        if not (folder / "model.json").is_file():
            simulate(ExperimentConfig.from_dict(config), out=folder, engine="serial")
        model, data = fedvision.load(folder), np.load(source)
        chosen = np.random.default_rng(options.seed).choice(
            len(data["test_labels"]), options.images, replace=False
        )
        images, labels = data["test_images"][chosen], data["test_labels"][chosen]
        images = images if images.ndim == 4 else images[..., None]
        accuracy = float((model.predict(images).labels == labels).mean())
        rows = {}
        for method in options.methods.split(","):
            begun = time.perf_counter()
            if (found := explained(model, images, method)) is None:
                continue
            rows[method] = row(found, time.perf_counter() - begun)
            if source == board:
                flat = found.maps.reshape(len(found), -1).argmax(1)
                peak = np.stack([flat // CANVAS, flat % CANVAS], 1) - data["test_corners"][chosen]
                rows[method]["points"] = float(((peak >= 0) & (peak < ITEM)).all(1).mean())
            show(name, method, rows[method])
        record(name, {"accuracy": accuracy, "methods": rows}, options.images, options.seed)


def record(name: str, figures: dict[str, Any], images: int, seed: int) -> None:
    """Put a network's figures in the place of its earlier ones."""
    file = RESULTS / "explain.json"
    networks = json.loads(file.read_text())["networks"] if file.is_file() else {}
    facts = {"environment": environment("cpu"), "images": images, "seed": seed}
    networks[name] = {**figures, "facts": facts}
    file.write_text(json.dumps({"networks": networks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
