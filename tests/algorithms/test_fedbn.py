"""FedBN: which tensors stay, in any network, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedbn import FedBN
from fedvision.config import ModelConfig
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import batch_norm_names
from tests.experiments import tiny
from tests.test_simulation import same

RESNET = {"use": "resnet8", "norm": "batch", "width": 4}


class Odd(nn.BatchNorm2d):
    """A batch norm of somebody's own, under a name that does not tell."""


def odd(num_classes: int, in_channels: int) -> nn.Module:
    """Return a network of one's own."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3),
        Odd(4),
        nn.BatchNorm2d(4, affine=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )


def test_batch_norm_is_found_by_type() -> None:
    statistics = ("running_mean", "running_var")
    wanted = (
        "1.weight",
        "1.bias",
        *(f"1.{name}" for name in statistics),
        *(f"2.{name}" for name in statistics),
    )
    assert batch_norm_names(odd(3, 1)) == wanted
    assert batch_norm_names(nn.Sequential(nn.GroupNorm(1, 4), nn.InstanceNorm2d(4, affine=True))) == ()
    found = ParameterGroups.of(odd(3, 1), ModelConfig(personal=("batch-norm", "5.bias")))
    assert found.personal == (*wanted, "5.bias")
    assert found.shared == ("0.weight", "0.bias", "5.weight")


def test_what_is_frozen_stays_frozen() -> None:
    found = ParameterGroups.of(odd(3, 1), ModelConfig(personal=("batch-norm",), frozen=("1.*",)))
    assert found.personal == ("2.running_mean", "2.running_var")
    assert found.frozen == ("1.weight", "1.bias", "1.running_mean", "1.running_var")


@pytest.mark.parametrize("model", [{"use": "cnn", "width": 4}, {**RESNET, "norm": "group"}])
def test_a_network_without_batch_norm_is_refused(model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"as of .* 'fedbn', keeps batch norm .* the network trains none"):
        Experiment.build(tiny(strategy={"use": "fedbn"}, model=model))


@pytest.mark.parametrize(
    ("model", "kept"),
    [(RESNET, {"batch-norm"}), ({**RESNET, "personal": ["head.*"]}, {"head.*", "batch-norm"})],
)
def test_the_strategy_adds_batch_norm_to_what_stays(model: dict[str, Any], kept: set[str]) -> None:
    experiment = Experiment.build(tiny(strategy={"use": "fedbn"}, model=model))
    assert set(experiment.config.model.personal) == kept
    shared = ParameterGroups.of(experiment.model, experiment.config.model).shared
    assert not set(batch_norm_names(experiment.model)) & set(shared)
    assert ("head.weight" in shared) == ("head.*" not in kept)


def test_the_server_is_fedavgs() -> None:
    assert FedBN.combine is FedAvg.combine
    assert FedBN.finalize is FedAvg.finalize
    assert FedBN().personal(("a", "batch-norm")) == ("a", "batch-norm")


@pytest.mark.slow
@pytest.mark.parametrize("model", [RESNET, {"use": f"{__name__}:odd"}])
def test_clients_keep_what_they_measured_and_the_model_has_the_first_values(
    model: dict[str, Any], tmp_path: Path
) -> None:
    """It is FedAvg of the other tensors to the bit, and what stays differs from client to client."""
    config = tiny(rounds=2, strategy={"use": "fedbn"}, model=model, evaluation={"holdout": 0.2})
    result = simulate(config, out=tmp_path / "run")
    names = batch_norm_names(Experiment.build(config).model)
    named = {**model, "personal": list(names)}
    by_hand = simulate(tiny(rounds=2, model=named, evaluation={"holdout": 0.2}), out=tmp_path / "by-hand")
    assert same(result.state, by_hand.state)
    kept = [
        load_file(max((tmp_path / f"run/clients/000000/{client:09d}").glob("*.safetensors")))
        for client in range(5)
    ]
    assert all(one.keys() == {f"personal/{name}" for name in names} for one in kept)
    mean = next(name for name in names if name.endswith("running_mean"))
    assert len({tuple(one[f"personal/{mean}"].tolist()) for one in kept}) == 5
    saved, first = load_file(tmp_path / "run/model.safetensors"), Experiment.build(config).model.state_dict()
    assert all(torch.equal(saved[name], first[name]) for name in names)
    assert [record["server"] for record in result.rounds] == [None, None]
    assert all(record["local"] for record in result.rounds)


@pytest.mark.slow
def test_a_run_is_resumed_with_what_the_strategy_added(tmp_path: Path) -> None:
    config = tiny(rounds=1, strategy={"use": "fedbn"}, model=RESNET)
    first = simulate(config, out=tmp_path / "run")
    assert same(first.state, simulate(config, out=tmp_path / "run", resume=True).state)
