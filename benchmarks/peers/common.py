"""What every rival's script shares: the workload's file, the network, evaluation, the result line.

NumPy and torch are all it needs, so it runs in any rival's environment.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

MEAN, STD = 0.286, 0.353
LR = 0.05
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Workload:
    """A workload as ``workloads.export`` wrote it, with what the command line settles."""

    path: Path
    batch: int
    rounds: int
    every: int

    def measured(self, number: int) -> bool:
        """Return whether a round (from 1) ends with an evaluation."""
        return number % self.every == 0 or number == self.rounds

    @property
    def file(self) -> Any:
        return np.load(self.path)

    def images(self, half: str = "") -> torch.Tensor:
        """Return normalised float32 images [N, 1, H, W]; ``half`` is "" for training, "test_" for test."""
        pixels = torch.from_numpy(self.file[f"{half}images"])
        # A new axis and not a permuted one: with a single channel torch calls both layouts contiguous, and
        # picks the kernels of channels_last by the strides, which a plain loop would not have.
        return pixels.squeeze(3)[:, None].float().div_(255).sub_(MEAN).div_(STD)

    def labels(self, half: str = "") -> torch.Tensor:
        return torch.from_numpy(self.file[f"{half}labels"])

    def clients(self) -> list[torch.Tensor]:
        """Return one int64 array of image numbers for each client."""
        return [torch.from_numpy(part) for part in np.split(self.file["indices"], self.file["ends"][:-1])]

    def cohorts(self) -> list[list[int]]:
        """Return the clients of each round."""
        return [row.tolist() for row in self.file["cohorts"][: self.rounds]]

    def initial(self) -> dict[str, torch.Tensor]:
        """Return the initial weights by name."""
        held = self.file
        names = [name for name in held.files if name.startswith("initial.")]
        return {name.removeprefix("initial."): torch.from_numpy(held[name]) for name in names}

    def network(self) -> Net:
        """Return the network with the workload's initial weights."""
        model = Net()
        model.load_state_dict(self.initial())
        return model


class Net(nn.Module):
    """The network in the usual order: convolution, ReLU, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dense, self.head = nn.Linear(1600, 128), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 10] of images [B, 1, 28, 28]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(F.relu(self.dense(x.flatten(1))))


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int) -> float:
    """Return the share of images that the model names rightly."""
    model.eval()
    pairs = zip(images.split(batch), labels.split(batch), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
    model.train()
    return right / len(labels)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of every rival's options: the workload's file and its numbers."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("file", type=Path)
    for name in ("batch", "rounds", "every"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser


def workload(options: argparse.Namespace) -> Workload:
    return Workload(options.file, options.batch, options.rounds, options.every)


def one_layer() -> nn.Module:
    """Return the network of clients that do nothing."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


class Clock:
    """Takes the time of the rounds and the evaluations, and prints the result.

    Args:
        process_begun: ``time.perf_counter()`` at the top of the script, from which start-up counts.
        device: Where the rival computes; a GPU's work is waited for before a time is taken.
    """

    def __init__(self, process_begun: float, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self.begun = self._now()
        self.startup = self.begun - process_begun
        self.marks: list[float] = []
        self.accuracies: list[float] = []
        self.evaluation = 0.0

    def round(self) -> None:
        """A round, its evaluation included, is over."""
        self.marks.append(self._now() - self.begun)

    def evaluate(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int) -> None:
        begun = self._now()
        self.accuracies.append(accuracy(model, images, labels, batch))
        self.evaluation += self._now() - begun

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def report(self, **facts: Any) -> None:
        """Print the line that the harness reads: seconds of the loop, its rounds, final accuracy, steps."""
        print_result(
            loop_s=self.marks[-1],
            startup_s=self.startup,
            marks=self.marks,
            evaluation_s=self.evaluation,
            rounds=len(self.marks),
            accuracy=self.accuracies[-1] if self.accuracies else None,
            threads=torch.get_num_threads(),
            **facts,
        )


def print_result(**facts: Any) -> None:
    print("RESULT " + json.dumps(facts), flush=True)
