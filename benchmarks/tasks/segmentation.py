"""Segmentation on a long tail: losses in the federation, with all images together, and alone.

    python benchmarks/tasks/segmentation.py [--jobs 2] [--only NAME] [--table] [--runs FOLDER]

Composed scenes (``scenes.py``): 800 of 96 x 96 pixels with one to five objects of Fashion-MNIST, whose ten
classes are drawn with odds that fall by 50, on a background that is a class of its own; 500 test scenes draw
them alike. 20 clients, split by Dirichlet 0.5 over the rarest class of each scene, half of them in each of 24
rounds of two epochs with batches of 4, momentum 0.9, a cosine schedule and gradients cut to a norm of 1: the
semantic branch of a feature pyramid of 64 channels on EfficientNet-Lite0 with its ImageNet weights, which
stays frozen, so its maps of a scene are computed once. Losses get the federation's counts of pixels. Each
loss has two learning rates, which are compared on scenes of set-aside images.

Needs Fashion-MNIST, CIFAR-10 and ~/.cache/fedvision/weights/efficientnet_lite0.pth, which one_round.py tells
about. Results go to results/tasks/segmentation.json; a command that was broken off goes on where it stopped.
"""

from __future__ import annotations

from task_tables import Method, Tables, TaskTable, run

ROUNDS = 24
RATES = (0.1, 0.3)
LOSSES: dict[str, Tables] = {
    "cross-entropy": {"use": "cross-entropy"},
    "logit adjustment": {"use": "logit-adjusted"},
    "Dice and cross-entropy": {"use": "dice", "cross_entropy": 0.5},
}
TABLE = TaskTable(
    name="segmentation",
    experiment={
        "name": "segmentation",
        "rounds": ROUNDS,
        "checkpoint_every": ROUNDS,
        "task": {"use": "segmentation", "background": 0},
        "data": {"use": "scenes:segmentation", "scenes": 800, "imbalance": 50.0, "size": 96},
        "partition": {"use": "dirichlet", "clients": 20, "alpha": 0.5},
        "model": {
            "use": "semantic-fpn",
            "backbone": {
                "use": "efficientnet-lite0",
                "weights": "~/.cache/fedvision/weights/efficientnet_lite0.pth",
                "train": "none",
            },
        },
        "training": {
            "batch_size": 4,
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
    scores={"mean IoU": "mean_iou", "case Dice": "case_dice", "rarest classes' IoU": "tail"},
)

if __name__ == "__main__":
    run(TABLE)
