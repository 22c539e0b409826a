"""The serial engine against a plain PyTorch loop: same split, weights, cohorts and batches.

    python benchmarks/serial.py [--rounds 30] [--seeds 0 1 2] [--threads 1]

Fashion-MNIST, 100 clients, Dirichlet 0.1, 10 clients a round, the CNN, FedAvg. The plain loop is what one
would write without a framework: images as float tensors in memory, one model, an optimiser a client, a
weighted mean. The tuned loop is the same with what the engine does to the arithmetic (pooling before ReLU,
channels_last, oneDNN's layout), so that the difference to it is the price of messages, records and
checkpoints. All run in one process, taking turns; table and raw figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import environments
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedvision import ExperimentConfig, seeding, simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.experiment import Experiment
from fedvision.models.mkldnn_layout import may_block
from fedvision.runs.environment import environment
from fedvision.runs.progress import Silent

RESULTS = Path(__file__).parent / "results"
EVALUATION_BATCH = 100


def experiment(seed: int, rounds: int) -> ExperimentConfig:
    return ExperimentConfig.from_dict(
        {
            "name": "serial",
            "seed": seed,
            "rounds": rounds,
            "data": {"use": "fashion-mnist"},
            "partition": {"use": "dirichlet", "clients": 100, "alpha": 0.1},
            "model": {"use": "cnn"},
            "training": {"lr": 0.05, "batch_size": 32},
            "strategy": {"use": "fedavg", "fraction": 0.1},
            "evaluation": {"every": 10},
        }
    )


class Clock(Silent):
    """Takes the time of all rounds, recording and checkpoints included."""

    def start(self, rounds: int, first_round: int) -> None:
        self.begun = time.perf_counter()

    def round_done(self, round: int, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        self.ended = time.perf_counter()


def ours(config: ExperimentConfig) -> tuple[float, float]:
    """Return seconds of all rounds and the final accuracy of fedvision's serial engine."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(config, out=Path(folder) / "run", progress=clock)
    return clock.ended - clock.begun, result.scores["accuracy"]


def plain_network() -> nn.Module:
    """The CNN as one writes it: convolution, ReLU, pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def plain(config: ExperimentConfig, tuned: bool = False) -> tuple[float, float]:
    """Return seconds of all rounds and the final accuracy of a loop without any framework."""
    federation = Experiment.build(config)
    test = federation.dataset.test
    assert test is not None
    x, y = _tensors(federation.dataset.train.images, federation.dataset.train.labels)
    test_x, test_y = _tensors(test.images, test.labels)
    weights = [tensor.clone() for tensor in federation.model.state_dict().values()]
    model = plain_network()
    if tuned:
        model = federation.model.to(memory_format=torch.channels_last)
        x, test_x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, test_x))
    parameters = list(model.parameters())
    select = FedAvg(fraction=0.1).select
    accuracy = 0.0
    begun = time.perf_counter()
    with may_block() if tuned else nullcontext():
        for number in range(1, config.rounds + 1):
            cohort = select(number, range(100), seeding.numpy_stream(config.seed, "select", number))
            total = sum(len(federation.split.clients[client]) for client in cohort)
            mean = [torch.zeros_like(tensor) for tensor in weights]
            for client in cohort:
                indices = federation.split.clients[client]
                with torch.no_grad():
                    for parameter, tensor in zip(parameters, weights, strict=True):
                        parameter.copy_(tensor)
                _train(
                    model, x, y, indices, seeding.numpy_stream(config.seed, "batches", number, client), config
                )
                with torch.no_grad():
                    for sum_, parameter in zip(mean, parameters, strict=True):
                        sum_.add_(parameter, alpha=len(indices) / total)
            weights = mean
            if number % config.evaluation.every == 0 or number == config.rounds:
                accuracy = _evaluate(model, weights, test_x, test_y)
    return time.perf_counter() - begun, accuracy


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25, torch.from_numpy(labels)


def _train(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    indices: np.ndarray,
    rng: np.random.Generator,
    config: ExperimentConfig,
) -> None:
    order = torch.from_numpy(indices[rng.permutation(len(indices))])
    optimizer = torch.optim.SGD(model.parameters(), lr=config.training.lr)
    model.train()
    for batch in order.split(config.training.batch_size):
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


@torch.no_grad()
def _evaluate(model: nn.Module, weights: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> float:
    for parameter, tensor in zip(model.parameters(), weights, strict=True):
        parameter.copy_(tensor)
    model.eval()
    batches = zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True)
    return sum(int((model(a).argmax(1) == b).sum()) for a, b in batches) / len(x)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ["FEDVISION_DATA"] = str(environments.images())
    torch.set_num_threads(options.threads)
    rows = []
    for seed in options.seeds:
        config = experiment(seed, options.rounds)
        turns = [("plain", plain), ("serial", ours), ("tuned", partial(plain, tuned=True))]
        found = {name: run(config) for name, run in (turns if seed % 2 == 0 else turns[::-1])}
        row = {"seed": seed}
        for name, (seconds, accuracy) in found.items():
            row |= {f"{name}_s": seconds, f"{name}_accuracy": accuracy}
        row |= {f"ratio_{name}": row["serial_s"] / row[f"{name}_s"] for name in ("plain", "tuned")}
        rows.append(row)
        print(json.dumps(row), flush=True)
    facts = {"environment": environment("cpu"), "options": vars(options), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serial.json").write_text(json.dumps(facts, indent=1))
    print(table(rows))


def table(rows: list[dict[str, float]]) -> str:
    """Return the rows as a Markdown table with the medians over seeds."""
    columns = {
        "plain loop, s": ("plain_s", "{:.1f}"),
        "tuned loop, s": ("tuned_s", "{:.1f}"),
        "serial engine, s": ("serial_s", "{:.1f}"),
        "serial / plain": ("ratio_plain", "{:.2f}"),
        "serial / tuned": ("ratio_tuned", "{:.2f}"),
        "accuracy plain": ("plain_accuracy", "{:.4f}"),
        "accuracy serial": ("serial_accuracy", "{:.4f}"),
    }
    lines = ["| seed | " + " | ".join(columns) + " |", "|" + "---|" * (1 + len(columns))]
    keys, forms = zip(*columns.values(), strict=True)
    for row in rows:
        cells = [form.format(row[key]) for key, form in zip(keys, forms, strict=True)]
        lines.append(f"| {row['seed']} | " + " | ".join(cells) + " |")
    medians = [statistics.median(row[key] for row in rows) for key in keys]
    cells = [form.format(value) for value, form in zip(medians, forms, strict=True)]
    return "\n".join([*lines, "| median | " + " | ".join(cells) + " |"])


if __name__ == "__main__":
    main()
