"""A client half and an optimiser that do not fit an experiment are refused before its first round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import LossFn
from tests.experiments import digits_of_several_labels, several_labels, tiny


class MeanLoss(ClientAlgorithm):
    """Its loss is one number a batch."""

    def loss(
        self, model: nn.Module, x: torch.Tensor, labels: torch.Tensor, task_loss: LossFn
    ) -> torch.Tensor:
        return super().loss(model, x, labels, task_loss).mean()


class Mean(FedAvg):
    """Its clients have that loss."""

    client = MeanLoss


class Broken(MeanLoss):
    """It calls the model as no model of images is called."""

    def loss(
        self, model: nn.Module, x: torch.Tensor, labels: torch.Tensor, task_loss: LossFn
    ) -> torch.Tensor:
        return model(x, labels)  # type: ignore[no-any-return]


class Breaking(FedAvg):
    """Its clients have that loss."""

    client = Broken


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        ("Mean", r"the loss of its client half is \[\], not \[2\]: one number an image"),
        ("Breaking", "the loss of its client half fails here: TypeError: .*takes 2 positional arguments"),
    ],
)
def test_a_loss_of_a_client_half_is_tried(use: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(tiny(strategy={"use": f"{__name__}:{use}"}))


def test_fedntd_needs_one_label_an_image(tmp_path: Path) -> None:
    Experiment.build(tiny(strategy={"use": "fedntd"}))
    tables = several_labels(digits_of_several_labels(tmp_path))
    with pytest.raises(ConfigError, match=r"use = 'fedntd': FedNTD distils .* it needs one label an image"):
        Experiment.build(tiny(strategy={"use": "fedntd"}, **tables))


def test_an_optimiser_that_takes_no_plain_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.optimizer: 'lbfgs' takes no step on gradients alone"):
        Experiment.build(tiny(training={"batch_size": 32, "lr": 0.1, "optimizer": "lbfgs"}))
