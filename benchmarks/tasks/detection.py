"""Detectors on a long tail: losses in the federation, with all images together, and alone.

    python benchmarks/tasks/detection.py [--jobs 2] [--only NAME] [--table] [--runs FOLDER]

Composed scenes (``scenes.py``): 1,000 of 64 x 64 pixels with one to five objects of Fashion-MNIST, whose ten
classes are drawn with odds that fall by 50; 500 test scenes draw them alike. 20 clients, split by Dirichlet
0.5 over the rarest class of each scene, half of them in each of 30 rounds of two epochs with batches of 8,
momentum 0.9, a cosine schedule and gradients cut to a norm of 10, flips; FCOS on a ResNet-8 with a pyramid of
32 channels. Losses get the federation's counts of boxes; both are binary cross-entropies.
Each loss has two learning rates, which are compared on scenes of set-aside images.

Needs Fashion-MNIST and CIFAR-10. Results go to results/tasks/detection.json; a command that was broken off
goes on where it stopped.
"""

from __future__ import annotations

from task_tables import Method, Tables, TaskTable, run

ROUNDS = 30
RATES = (0.02, 0.04)
LOSSES: dict[str, Tables] = {
    "cross-entropy": {"use": "cross-entropy"},
    "weighted by square roots": {"use": "weighted", "scheme": "square-root"},
}
TABLE = TaskTable(
    name="detection",
    experiment={
        "name": "detection",
        "rounds": ROUNDS,
        "checkpoint_every": ROUNDS,
        "task": {"use": "detection"},
        "data": {"use": "scenes:detection", "scenes": 1000, "imbalance": 50.0, "size": 64},
        "partition": {"use": "dirichlet", "clients": 20, "alpha": 0.5},
        "model": {"use": "fcos", "backbone": "resnet8", "channels": 32},
        "transforms": {"flip": True},
        "training": {
            "batch_size": 8,
            "epochs": 2,
            "momentum": 0.9,
            "schedule": "cosine",
            "clip_norm": 10.0,
        },
        "strategy": {"use": "fedavg", "fraction": 0.5},
        "evaluation": {"every": ROUNDS},
    },
    methods={
        name: Method(
            tables={"loss": {**loss, "prior": "global"}},
            settings=[{"training": {"lr": rate}} for rate in RATES],
        )
        for name, loss in LOSSES.items()
    },
    scores={"AP": "ap", "AP50": "ap50", "rarest classes' AP": "tail"},
)

if __name__ == "__main__":
    run(TABLE)
