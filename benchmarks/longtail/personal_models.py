"""What clients reach on their own images: one model for all beside models of their own.

    python benchmarks/longtail/personal_models.py [--jobs 2] [--only NAME] [--table]

Fashion-MNIST with a long tail of 100 on 20 clients, split by Dirichlet 0.3, half of them in each of 30 rounds
of two epochs; the CNN of width 16. Each client measures on the fifth of its images that it holds out: the
global model, or its own where the method makes one. Two rates are compared by the clients' accuracy on their
held-out images with seed 0; the other seeds hold out other images.

Needs Fashion-MNIST. Results go to results/longtail/personal-models.json.
"""

from __future__ import annotations

from methods import TWO_RATES, loss, rates, strategy
from protocol import Method, Protocol, merged, run

ROUNDS = 30
HEAD = {"model": {"personal": ["head.*"]}}
PROTOCOL = Protocol(
    name="personal-models",
    experiment={
        "name": "personal",
        "rounds": ROUNDS,
        "checkpoint_every": ROUNDS,
        "data": {"use": "fashion-mnist"},
        "partition": {"use": "dirichlet", "clients": 20, "alpha": 0.3, "imbalance": 100},
        "model": {"use": "cnn", "width": 16},
        "training": {"batch_size": 32, "epochs": 2, "schedule": "cosine", "clip_norm": 1.0},
        "strategy": {"use": "fedavg", "fraction": 0.5},
        "evaluation": {"every": ROUNDS, "holdout": 0.2},
    },
    methods={
        "FedAvg": Method({}, rates(*TWO_RATES)),
        "logit adjustment": Method(loss("logit-adjusted", prior="global"), rates(*TWO_RATES)),
        "q-FedAvg": Method(strategy("q-fedavg", lipschitz=0.3, q=0.02), rates(*TWO_RATES)),
        "FedPer": Method(merged(strategy("fedper"), HEAD), rates(*TWO_RATES)),
        "FedRep": Method(merged(strategy("fedrep"), HEAD), rates(*TWO_RATES)),
        "FedRoD": Method(
            merged(
                strategy("fedrod"),
                loss("balanced-softmax", prior="local"),
                {"model": {"head": "personalized", "personal": ["head.personal.*"]}},
            ),
            rates(*TWO_RATES),
        ),
        "FedLoGe": Method(
            merged(strategy("fedloge"), {"model": {"head": "realigned", "personal": ["head.personal.*"]}}),
            rates(*TWO_RATES),
        ),
        "Ditto": Method(strategy("ditto"), rates(*TWO_RATES)),
        "APFL": Method(strategy("apfl"), rates(*TWO_RATES)),
    },
    tuning={},
    scores={
        "own images": "own",
        "own, classes alike": "own_balanced",
        "own, worst client": "own_worst",
        "test images, classes alike": "balanced_accuracy",
    },
)

if __name__ == "__main__":
    run(PROTOCOL)
