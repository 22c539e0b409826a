"""The two workloads on which simulators are compared, and the file from which every rival reads them.

W1, cross-device: 1000 clients of Fashion-MNIST with Dirichlet 0.1 over the labels, 20 a round, batch 32, 30
rounds, evaluation on the 10,000 test images every 10 rounds. W2, cross-silo: 10 clients, Dirichlet 0.5, all
of them in each of 5 rounds, batch 64, one evaluation. SGD 0.05, FedAvg weighted by images, the network below.

The third, idle: 3000 clients that send back the model they got, a linear layer, so that a round's seconds are
what messages, records and sums cost.

``python benchmarks/workloads.py w1 FILE.npz`` writes what fedvision makes of a workload: the images, who has
which of them, every round's cohort and the initial weights. Rivals read the file, so all train the same
clients on the same images in the same rounds from the same model.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.mkldnn_layout import blocked, plain

MEAN, STD = 0.286, 0.353
LR = 0.05
SEED = 1
WORKLOADS: dict[str, dict[str, Any]] = {
    "w1": {"clients": 1000, "cohort": 20, "alpha": 0.1, "batch": 32, "rounds": 30, "every": 10},
    "idle": {"clients": 3000, "cohort": 3000, "alpha": 0.0, "batch": 32, "rounds": 6, "every": 6},
    "w2": {"clients": 10, "cohort": 10, "alpha": 0.5, "batch": 64, "rounds": 5, "every": 5},
}


class Cnn(nn.Module):
    """conv 32 - pool - conv 64 - pool - dense 128 - dense C: 225,034 parameters for 28x28x1 and 10 classes.

    Pooling comes before the ReLU, which is the same function in less time; rivals have the usual order.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dense, self.head = nn.Linear(1600, 128), nn.Linear(128, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C] of images [B, 1, 28, 28]."""
        x = F.relu(F.max_pool2d(self.conv1(blocked(images)), 2, 2))
        x = plain(F.relu(F.max_pool2d(self.conv2(x), 2, 2)))
        logits: torch.Tensor = self.head(F.relu(self.dense(x.flatten(1))))
        return logits


def cnn(*, num_classes: int) -> nn.Module:
    """Build the network of both workloads."""
    return Cnn(num_classes)


def idle(*, num_classes: int) -> nn.Module:
    """Build a linear layer, and let the clients of every process that has it do nothing."""
    return Idle(num_classes)


class Idle(nn.Sequential):
    """A linear layer in whose presence, built here or sent here, training is answering."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, num_classes))
        _do_nothing()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _do_nothing()


def _do_nothing() -> None:
    from fedvision.training.client_trainer import ClientTrainer
    from fedvision.training.loop import TrainResult
    from fedvision.types import TrainRequest

    def nothing(trainer: ClientTrainer, request: TrainRequest) -> TrainResult:
        return TrainResult(state=request.state, examples=1, loss=0.0, steps=0)

    ClientTrainer.train = nothing  # type: ignore[method-assign]


def experiment(workload: str, *, rounds: int | None = None) -> dict[str, Any]:
    """Return a workload as the table of a fedvision experiment; it needs this folder on ``sys.path``."""
    w = WORKLOADS[workload]
    rounds = rounds or w["rounds"]
    partition = {"use": "dirichlet", "alpha": w["alpha"]} if w["alpha"] else {"use": "iid"}
    return {
        "name": workload,
        "seed": SEED,
        "rounds": rounds,
        "checkpoint_every": rounds,
        "data": {"use": "fashion-mnist"},
        "partition": partition | {"clients": w["clients"]},
        "transforms": {"mean": [MEAN], "std": [STD]},
        "model": {"use": f"workloads:{'cnn' if w['alpha'] else 'idle'}"},
        "training": {"lr": LR, "batch_size": w["batch"]},
        "strategy": {"use": "fedavg", "fraction": w["cohort"] / w["clients"]},
        "evaluation": {"every": w["every"]},
    }


def export(workload: str, path: Path) -> None:
    """Write images, split, cohorts and initial weights of a workload as ``fedvision`` makes them."""
    from fedvision import ExperimentConfig, seeding
    from fedvision.experiment import Experiment

    federation = Experiment.build(ExperimentConfig.from_dict(experiment(workload)))
    clients, test = federation.split.clients, federation.dataset.test
    assert test is not None
    cohorts = [
        federation.strategy.inner.select(  # type: ignore[attr-defined]
            number, range(len(clients)), seeding.numpy_stream(SEED, "select", number)
        )
        for number in range(1, federation.config.rounds + 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(
        temporary,
        images=federation.dataset.train.images,
        labels=federation.dataset.train.labels,
        test_images=test.images,
        test_labels=test.labels,
        indices=np.concatenate(clients),
        ends=np.cumsum([len(part) for part in clients]),
        cohorts=np.array(cohorts),
        **{f"initial.{name}": tensor.numpy() for name, tensor in federation.model.state_dict().items()},
    )
    os.replace(temporary, path)


def main() -> None:
    """Write a workload's file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    export(options.workload, options.file)


if __name__ == "__main__":
    main()
