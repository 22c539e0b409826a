"""Several labels an image on a long tail: losses in the federation, with all images together, and alone.

    python benchmarks/tasks/multi_label.py [--jobs 2] [--only NAME] [--table] [--runs FOLDER]

Composed scenes (``scenes.py``): 2,000 of 64 x 64 pixels with one to five objects of Fashion-MNIST, whose ten
classes are drawn with odds that fall by 50; 1,000 test scenes draw them alike. 20 clients, split by Dirichlet
0.5 over the rarest label of each scene, half of them in each of 60 rounds of two epochs with batches of 32,
momentum 0.9, a cosine schedule and gradients cut to a norm of 1; the CNN of width 16, flips and crops. Losses
get the federation's counts. Each loss has four learning rates, which are compared on scenes of set-aside
images.

Needs Fashion-MNIST and CIFAR-10. Results go to results/tasks/multi-label.json; a command that was broken off
goes on where it stopped.
"""

from __future__ import annotations

from task_tables import Method, Table, Tables, run

ROUNDS = 60
RATES = (0.01, 0.03, 0.1, 0.3)
LOSSES: dict[str, Tables] = {
    "binary cross-entropy": {"use": "binary-cross-entropy"},
    "class-balanced": {"use": "class-balanced"},
    "asymmetric": {"use": "asymmetric"},
    "distribution-balanced": {"use": "distribution-balanced"},
    "distribution-balanced, focal": {"use": "distribution-balanced", "gamma": 2.0},
}
TABLE = Table(
    name="multi-label",
    experiment={
        "name": "multi-label",
        "rounds": ROUNDS,
        "checkpoint_every": ROUNDS,
        "task": {"use": "multi-label"},
        "data": {"use": "scenes:multi_label", "scenes": 2000, "imbalance": 50.0, "size": 64},
        "partition": {"use": "dirichlet", "clients": 20, "alpha": 0.5},
        "model": {"use": "cnn", "width": 16},
        "transforms": {"flip": True, "crop": 6},
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
