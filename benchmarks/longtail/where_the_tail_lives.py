"""The tail in two of 20 clients beside the same class counts spread over all.

    python benchmarks/longtail/where_the_tail_lives.py [--jobs 2] [--only NAME] [--table]

Fashion-MNIST with a long tail of 100 on 20 clients, split by Dirichlet 0.5; eight of them in each of 30
rounds of two epochs, the CNN of width 16. With ``tail_clients = 2`` all images of the three rarest classes
lie with two clients; class counts and sizes of clients stay. Two rates are compared where the tail is
spread, on 600 images of each class set aside.

Needs Fashion-MNIST. Results go to results/longtail/where-the-tail-lives.json, the pictures beside it.
"""

from __future__ import annotations

from fashion import PROTOCOL as FASHION
from methods import at_two_rates
from picture import draw
from protocol import RESULTS, Protocol, merged, run

ROUNDS = 30
COMPARED = (
    "FedAvg",
    "logit adjustment",
    "balanced sampler",
    "FedVLS",
    "head rows by support",
    "CCVR",
    "longtail",
)
SPREAD, IN_TWO = "tail spread", "tail in two clients"
PROTOCOL = Protocol(
    name="where-the-tail-lives",
    experiment=merged(
        FASHION.experiment,
        {
            "rounds": ROUNDS,
            "checkpoint_every": ROUNDS,
            "partition": {"clients": 20, "alpha": 0.5},
            "strategy": {"fraction": 0.4},
            "evaluation": {"every": ROUNDS},
        },
    ),
    methods=at_two_rates(*COMPARED),
    tuning=FASHION.tuning,
    splits={SPREAD: {}, IN_TWO: {"partition": {"tail_clients": 2}}},
)

if __name__ == "__main__":
    store = run(PROTOCOL)
    for split in PROTOCOL.splits:
        draw(store, PROTOCOL, RESULTS / f"{split.replace(' ', '-')}.svg", split)
