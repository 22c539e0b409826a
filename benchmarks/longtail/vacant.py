"""Clients that lack classes: what the methods make of CIFAR-10 where the label skew grows.

    python benchmarks/longtail/vacant.py [--jobs 2] [--only NAME] [--table]

Ten clients, all in each of 25 rounds of 20 steps with batches of 32 and a cosine schedule; the CNN of width
16; no long tail. Dirichlet 0.5, 0.1 and 0.05. Two rates are compared with 0.1, on 500 images of each class
set aside. "FedLC, as published" leaves a class that a client lacks out of that client's softmax (a floor of
1e-8 images); the remedy, fedvision's default, lets such a class count as one image.

Needs CIFAR-10 where one_round.py looks for it. Results go to results/longtail/vacant.json, a picture for each
split beside it.
"""

from __future__ import annotations

from methods import at_two_rates, loss, rates, strategy
from one_round import DATA
from picture import draw
from protocol import RESULTS, Method, Protocol, merged, run

ROUNDS = 25
RATES = (0.4, 0.8)
AS_PUBLISHED = {"use": "fedlc", "floor": 1e-8}
PROTOCOL = Protocol(
    name="vacant",
    experiment={
        "name": "vacant",
        "rounds": ROUNDS,
        "checkpoint_every": ROUNDS,
        "data": {"use": "npz", "path": str(DATA / "cifar10.npz")},
        "partition": {"use": "dirichlet", "clients": 10},
        "model": {"use": "cnn", "width": 16},
        "training": {"batch_size": 32, "steps": 20, "schedule": "cosine", "clip_norm": 1.0},
        "strategy": {"use": "fedavg"},
        "evaluation": {"every": ROUNDS},
    },
    methods={
        "FedAvg": Method({}, rates(*RATES)),
        "FedLC, as published": Method({"loss": AS_PUBLISHED}, rates(*RATES)),
        "FedLC, a floor of one image": Method(loss("fedlc"), rates(*RATES)),
        "FedRS": Method(loss("fedrs"), rates(*RATES)),
        "FedVLS": Method(merged(strategy("fedvls"), loss("logit-adjusted", prior="local")), rates(*RATES)),
        **at_two_rates("longtail", lr=RATES),
    },
    tuning={"data": {"validation": 0.1}},
    splits={
        "Dirichlet 0.1": {"partition": {"alpha": 0.1}},
        "Dirichlet 0.5": {"partition": {"alpha": 0.5}},
        "Dirichlet 0.05": {"partition": {"alpha": 0.05}},
    },
)

if __name__ == "__main__":
    store = run(PROTOCOL)
    for split in PROTOCOL.splits:
        draw(store, PROTOCOL, RESULTS / f"{split.lower().replace(' ', '-')}.svg", split)
