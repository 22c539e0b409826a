"""CIFAR-10 with a long tail in the protocol of CReFF and those that compare with it.

    python benchmarks/longtail/cifar.py [--rounds 6] [--imbalance 100] [--jobs 2] [--runs FOLDER]

20 clients, split by Dirichlet 0.5, eight of them a round, ten local epochs with batches of 32 and SGD 0.1
without momentum, crops and flips, the ResNet-8 of 1.2 million parameters with batch norm, 200 rounds (CReFF,
Shang et al. 2022, arXiv 2204.13399, and its authors' code, which crops and flips a whole batch alike; here
each image has its own). The forward pass computes in bfloat16. Published settings are taken, none is tuned;
of our method it is the one that was chosen on Fashion-MNIST, but for the rate.

A run takes hours: with ``--runs FOLDER`` one that was broken off goes on there. ``--rounds`` makes the short
form, whose results have a file of their own: results/longtail/cifar-IMBALANCE-ROUNDS.json.
Needs CIFAR-10 where one_round.py looks for it.
"""

from __future__ import annotations

import argparse

from methods import LONGTAIL, fixed, loss, strategy
from one_round import DATA
from picture import draw
from protocol import RESULTS, Method, Protocol, merged, run

COMPARED = {
    "FedAvg": {},
    "FedRS": loss("fedrs"),
    "logit adjustment": loss("logit-adjusted", prior="global"),
    "CCVR": strategy("ccvr"),
    "longtail": merged(LONGTAIL.tables, {"transforms": {"mixup": 0.1}}),
}


def protocol(rounds: int, imbalance: float) -> Protocol:
    """Return the protocol of so many rounds and such an imbalance."""
    return Protocol(
        name=f"cifar-{imbalance:g}-{rounds}",
        experiment={
            "name": "longtail",
            "rounds": rounds,
            "checkpoint_every": 1,
            "data": {"use": "npz", "path": str(DATA / "cifar10.npz")},
            "partition": {"use": "dirichlet", "clients": 20, "alpha": 0.5, "imbalance": imbalance},
            "model": {"use": "resnet8-wide"},
            "transforms": {"flip": True, "crop": 4},
            "training": {"lr": 0.1, "batch_size": 32, "epochs": 10, "precision": "bfloat16"},
            "strategy": {"use": "fedavg", "fraction": 0.4},
            "evaluation": {"every": rounds},
        },
        methods={name: Method(tables, fixed()) for name, tables in COMPARED.items()},
        tuning={},
        seeds=(0,),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--imbalance", type=float, default=100)
    options, others = parser.parse_known_args()
    own = protocol(options.rounds, options.imbalance)
    draw(run(own, others), own, RESULTS / f"{own.name}.svg")
