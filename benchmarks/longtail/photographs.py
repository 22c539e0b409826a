"""A real folder with natural imbalance: ELPV's solar cells, from scratch and with a frozen network.

    python benchmarks/longtail/photographs.py [--jobs 2] [--only NAME] [--table]

2,624 photographs in four classes (1508, 715, 295 and 106 images), 8 clients, split by Dirichlet 1.0, all of
them in each round. From scratch: 20 rounds of two epochs of the CNN of width 16 at 64 px. Frozen: the
head of EfficientNet-Lite0 with its ImageNet weights, 20 rounds of two epochs at 128 px; what the frozen
layers make of an image is computed once. A fifth of the photographs is the test set; two rates are compared
on a fifth of each client's training images. Seeds do not change the test set.

Needs ELPV and the weights of EfficientNet-Lite0 where one_round.py looks for them. Results go to
results/longtail/photographs-scratch.json and photographs-frozen.json, pictures beside them.
"""

from __future__ import annotations

from methods import at_two_rates
from one_round import DATA
from picture import draw
from protocol import RESULTS, Protocol, Tables, merged, run

ROUNDS = 20
COMPARED = (
    "FedAvg",
    "logit adjustment",
    "balanced sampler",
    "FedVLS",
    "CCVR",
    "longtail",
)
EXPERIMENT: Tables = {
    "name": "photographs",
    "rounds": ROUNDS,
    "checkpoint_every": ROUNDS,
    "data": {"use": "image-folder", "path": str(DATA / "elpv"), "channels": 1, "validation": 0.2},
    "partition": {"use": "dirichlet", "clients": 8, "alpha": 1.0},
    "training": {"batch_size": 32, "epochs": 2, "schedule": "cosine", "clip_norm": 1.0},
    "strategy": {"use": "fedavg"},
    "evaluation": {"every": ROUNDS},
}
NETWORKS: dict[str, Tables] = {
    "scratch": {
        "data": {"size": 64},
        "model": {"use": "cnn", "width": 16},
        "transforms": {"flip": True, "crop": 4},
    },
    "frozen": {
        "data": {"size": 128},
        "model": {
            "use": "efficientnet-lite0",
            "weights": str(DATA / "weights/efficientnet_lite0.pth"),
            "train": "head",
        },
    },
}
PROTOCOLS = [
    Protocol(
        name=f"photographs-{name}",
        experiment=merged(EXPERIMENT, network),
        methods=at_two_rates(*COMPARED),
        tuning={"evaluation": {"holdout": 0.2}},
        scores={
            "macro F1": "macro_f1",
            "balanced accuracy": "balanced_accuracy",
            "rarest class": "tail",
            "worst client": "worst_client",
        },
    )
    for name, network in NETWORKS.items()
]

if __name__ == "__main__":
    for protocol in PROTOCOLS:
        draw(run(protocol), protocol, RESULTS / f"{protocol.name}.svg")
