"""Generated images and features for rare classes, beside what re-weights those that there are.

    python benchmarks/longtail/generation.py [--jobs 2] [--only NAME] [--table]

Fashion-MNIST with a long tail of 100 on ten clients, split by Dirichlet 0.3, all of them in each of 20 rounds
of one epoch; the CNN of width 16. FedGAN fills a client's rare classes with images of a generator that the
clients train together, CCVR and CReFF train the head on features that the server makes. What the generator
leaks stands below the table: the median distance of 100 generated images of a class to the nearest training
image, over that of 100 unseen real images; a ratio of 1 means that they are as far, 0 that they are copies.
Two rates are compared on 600 images of each class that are set aside before the long tail is cut.

Needs Fashion-MNIST. Results go to results/longtail/generation.json, the picture beside it.
"""

from __future__ import annotations

from fashion import PROTOCOL as FASHION
from harness import Store, spread
from methods import TWO_RATES, at_two_rates, rates, strategy
from picture import draw
from protocol import RESULTS, Method, Protocol, merged, run

ROUNDS = 20
COMPARED = (
    "FedAvg",
    "balanced sampler",
    "logit adjustment",
    "CCVR",
    "CReFF",
    "longtail",
)
PROTOCOL = Protocol(
    name="generation",
    experiment=merged(
        FASHION.experiment,
        {
            "rounds": ROUNDS,
            "checkpoint_every": ROUNDS,
            "partition": {"clients": 10},
            "training": {"epochs": 1},
            "strategy": {"fraction": 1.0},
            "evaluation": {"every": ROUNDS},
        },
    ),
    methods={
        **at_two_rates(*COMPARED),
        "FedGAN": Method(strategy("fedgan", warmup=7), rates(*TWO_RATES)),
    },
    tuning=FASHION.tuning,
)


def leaks(store: Store) -> str:
    """Return the leakage of the generators as Markdown, a row a class, the most frequent first."""
    runs = PROTOCOL.measured(store, "FedGAN")
    if not runs:
        return ""
    lines = ["| class | training images | distance over that of unseen images | nearer, share of pairs |"]
    lines.append("|---|---|---|---|")
    for label, images in enumerate(runs[0]["counts"]):
        own = [run["leakage"][label] for run in runs]
        ratio, nearer = (spread([one[key] for one in own], ".2f") for key in ("ratio", "nearer"))
        lines.append(f"| {own[0]['name']} | {images:,} | {ratio} | {nearer} |")
    return "\n".join(lines)


if __name__ == "__main__":
    store = run(PROTOCOL)
    print(leaks(store))
    draw(store, PROTOCOL, RESULTS / "generation.svg")
