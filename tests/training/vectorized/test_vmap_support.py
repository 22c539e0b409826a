"""What cannot be trained at once is named in one line, by rule or by trial."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision import registry
from fedvision.config import TransformConfig
from fedvision.training.vectorized.vmap_support import supports_vmap
from fedvision.types import LossFn, PluginSpec
from tests.methods import NETWORKS
from tests.training.client_cases import CLASSES, SIDE, Cohort, network, settings


class Plugin(nn.Module):
    """A linear network with something done to its images [B, 64]."""

    def __init__(self, twist: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(SIDE * SIDE, CLASSES)
        self.register_buffer("seen", torch.zeros(()))
        self.twist = twist

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)
        logits: torch.Tensor = self.linear(x if self.twist is None else self.twist(x))
        return logits


PASSES = itertools.count(1)


class Counting(Plugin):
    """Counts its forward passes in a buffer."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        return super().forward(images)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Plugin(), None),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4)), "batch norm (1) would measure"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 4)), "dropout (1) draws"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, 4)), None),
        (
            Plugin(lambda x: F.dropout(x, 0.5)),
            "the network has no stacked form: vmap: called random operation",
        ),
        (Plugin(lambda x: x - x.mean(0)), "the network's logits of an image depend on the others"),
        (Plugin(lambda x: x if float(x.sum()) > 0 else -x), "the network has no stacked form: "),
        (Plugin(lambda x: x * len(x)), "the network's logits of an image depend on the others"),
        (
            Plugin(lambda x: x * next(PASSES)),
            "the network gives several clients at once other logits than one by one",
        ),
        (Counting(), "the network changes its buffer 'seen' while it trains"),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_stacked_is_found(model: nn.Module, reason: str | None) -> None:
    found = Cohort(model=model).unsupported_reason()
    assert (found is None) if reason is None else (found or "").startswith(reason)
    if isinstance(model, Plugin):
        assert model.seen == 0


def test_operation_without_a_batching_rule() -> None:
    """An operation that would be done client by client is an obstacle and no warning."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = Cohort(model=Plugin(lambda x: torch.renorm(x, 2, 0, 1.0))).unsupported_reason()
    assert (found or "").startswith("the network has no stacked form: There is a performance drop")
    assert not warned


@pytest.mark.parametrize("use", NETWORKS)
def test_built_in_networks_that_drop_or_measure_batches_fall_back(use: str) -> None:
    if "dropout" in registry.parameters("model", use):
        assert Cohort(model=network(use, dropout=0.1)).unsupported_reason() is not None
    if "norm" in registry.parameters("model", use):
        assert (Cohort(model=network(use, norm="batch")).unsupported_reason() or "").startswith("batch norm")


def test_a_frozen_part_may_drop_and_measure_as_it_does_neither() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 4))

    def train(mode: bool = True) -> nn.Module:
        nn.Module.train(model, mode)
        model[1].eval()
        model[2].eval()
        return model

    model.train = train  # type: ignore[method-assign]
    assert Cohort(model=model).unsupported_reason() is None


@pytest.mark.parametrize(
    ("training", "transforms", "reason"),
    [
        ({"precision": "float16"}, {}, "float16 skips steps"),
        ({}, {"mixup": 0.2}, "mixup blends"),
        ({"optimizer": PluginSpec(use="adafactor")}, {}, "the optimiser 'adafactor' is not known"),
        ({"optimizer": PluginSpec(use="lbfgs")}, {}, "the optimiser 'lbfgs' is not known"),
        ({"optimizer": PluginSpec(use="torch.optim:SGD"), "precision": "bfloat16"}, {"flip": True}, None),
    ],
)
def test_settings_that_cannot_be_stacked_are_named(
    training: dict[str, Any], transforms: dict[str, Any], reason: str | None
) -> None:
    found = Cohort(settings=settings(TransformConfig(**transforms), **training)).unsupported_reason()
    assert (found is None) if reason is None else (found or "").startswith(reason)


def of_batch(counts: torch.Tensor) -> LossFn:
    return lambda z, y: F.cross_entropy(z.movedim(-1, 1), y, reduction="none") / z.shape[-2]


def of_all(counts: torch.Tensor) -> LossFn:
    weights = counts / counts.max()
    return lambda z, y: weights.expand(*z.shape[:-2], -1).gather(-1, y) * z.sum(-1)


def of_one(counts: torch.Tensor) -> LossFn:
    return lambda z, y: F.cross_entropy(z, y, weight=counts.float(), reduction="none")


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (of_batch, "the loss of an image depends on the others of its batch"),
        (of_all, "the loss gives several clients at once other values"),
        (of_one, "the loss does not take several clients at once: "),
    ],
)
def test_a_loss_that_cannot_be_stacked_is_found(loss: Callable[[torch.Tensor], LossFn], reason: str) -> None:
    chosen = settings()
    assert (supports_vmap(network(), (SIDE, SIDE, 1), CLASSES, loss=loss, settings=chosen) or "").startswith(
        reason
    )
