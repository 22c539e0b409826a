"""What a Flower client does in its Ray actor; in a module of its own so that an actor keeps what it made."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import LR, Workload
from flwr.app import ArrayRecord
from torch.nn import functional as F


@cache
def _loaded(file: str) -> dict[str, Any]:
    w = Workload(Path(file), 0, 0, 0)
    model = w.network()
    return {
        "images": w.images(),
        "labels": w.labels(),
        "clients": w.clients(),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=LR),
    }


def train(arrays: ArrayRecord, config: dict[str, Any]) -> tuple[ArrayRecord, int, int]:
    """Return the trained model, its images and steps."""
    content = _loaded(config["file"])
    model, optimizer = content["model"], content["optimizer"]
    model.load_state_dict(arrays.to_torch_state_dict())
    mine = content["clients"][config["client"]]
    mine = mine[torch.randperm(len(mine))]
    images, labels = content["images"][mine], content["labels"][mine]
    steps = 0
    for x, y in zip(images.split(config["batch"]), labels.split(config["batch"]), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        steps += 1
    return ArrayRecord(model.state_dict()), len(mine), steps
