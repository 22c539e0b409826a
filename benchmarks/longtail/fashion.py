"""All methods on Fashion-MNIST with a long tail of 100.

    python benchmarks/longtail/fashion.py [--jobs 2] [--only NAME] [--table]

100 clients, split by Dirichlet 0.3, ten of them a round, 100 rounds of two epochs with batches of 32 and a
cosine schedule, gradients cut to a norm of 1 (without, single clients' losses rose to 5 and whole runs with
them); the CNN of width 16, no augmentation. Settings are compared on 600 images of each class that
are set aside before the long tail is cut.

Needs Fashion-MNIST. Results go to results/longtail/fashion.json, the picture to results/longtail/fashion.svg;
a command that was broken off goes on where it stopped.
"""

from __future__ import annotations

from methods import METHODS
from picture import draw
from protocol import RESULTS, Protocol, run

ROUNDS = 100
PROTOCOL = Protocol(
    name="fashion",
    experiment={
        "name": "longtail",
        "rounds": ROUNDS,
        "checkpoint_every": ROUNDS,
        "data": {"use": "fashion-mnist"},
        "partition": {"use": "dirichlet", "clients": 100, "alpha": 0.3, "imbalance": 100},
        "model": {"use": "cnn", "width": 16},
        "training": {"batch_size": 32, "epochs": 2, "schedule": "cosine", "clip_norm": 1.0},
        "strategy": {"use": "fedavg", "fraction": 0.1},
        "evaluation": {"every": ROUNDS},
    },
    methods=METHODS,
    tuning={"data": {"validation": 0.1}},
)

if __name__ == "__main__":
    draw(run(PROTOCOL), PROTOCOL, RESULTS / "fashion.svg")
