"""Several labels an image on a long tail: losses in the federation, with all images together, and alone.

    python benchmarks/tasks/multi_label.py [--jobs 2] [--only NAME] [--table] [--runs FOLDER]

Composed scenes (``scenes.py``): 2,000 of 96 x 96 pixels with one to five objects of Fashion-MNIST, whose ten
classes are drawn with odds that fall by 50; 1,000 test scenes draw them alike. 20 clients, split by Dirichlet
0.5 over the rarest label of each scene, half of them in each of 60 rounds of two epochs with batches of 32,
momentum 0.9, a cosine schedule and gradients cut to a norm of 1: the head of EfficientNet-Lite0 with its
ImageNet weights, at 192 pixels. Losses get the federation's counts. Each loss has four learning rates, which
are compared on scenes of set-aside images.

Needs Fashion-MNIST, CIFAR-10 and ~/.cache/fedvision/weights/efficientnet_lite0.pth, which one_round.py tells
about. Results go to results/tasks/multi-label.json; a command that was broken off goes on where it stopped.
"""

from __future__ import annotations

from task_tables import Method, Tables, TaskTable, run

ROUNDS = 60
RATES = (0.01, 0.03, 0.1, 0.3)
LOSSES: dict[str, Tables] = {
    "binary cross-entropy": {"use": "binary-cross-entropy"},
    "class-balanced": {"use": "class-balanced"},
    "asymmetric": {"use": "asymmetric"},
    "distribution-balanced": {"use": "distribution-balanced"},
    "distribution-balanced, focal": {"use": "distribution-balanced", "gamma": 2.0},
}
TABLE = TaskTable(
    name="multi-label",
    experiment={
        "name": "multi-label",
        "rounds": ROUNDS,
        "checkpoint_every": ROUNDS,
        "task": {"use": "multi-label"},
        "data": {"use": "scenes:multi_label", "scenes": 2000, "imbalance": 50.0, "size": 96},
        "partition": {"use": "dirichlet", "clients": 20, "alpha": 0.5},
        "model": {
            "use": "efficientnet-lite0",
            "weights": "~/.cache/fedvision/weights/efficientnet_lite0.pth",
            "train": "head",
        },
        "transforms": {"size": 192},
        "training": {
            "batch_size": 32,
            "epochs": 2,
            "momentum": 0.9,
            "schedule": "cosine",
            "clip_norm": 1.0,
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
    scores={"mean AP": "mean_ap", "rarest labels' AP": "tail"},
)

if __name__ == "__main__":
    run(TABLE)
