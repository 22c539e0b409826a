"""Frozen tensors neither move nor change under weight decay, and their layers stay in evaluation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.config import ModelConfig
from fedvision.errors import ConfigError
from fedvision.models.build import build_model
from fedvision.models.freezing import freeze, frozen_names, frozen_state, training_mode
from fedvision.models.state import digest, personal_names, shared_names
from fedvision.tasks.classification import Classification


def build(use: str = "resnet8", *frozen: str, **args: Any) -> nn.Module:
    small = {"width": 4, "norm": "batch"} if use == "resnet8" else {"width": 4, "dense": 8}
    config = ModelConfig(use=use, frozen=frozen, args={**small, **args})
    return build_model(config, task=Classification(), num_classes=3, in_channels=1, image_size=(8, 8), seed=1)


def images() -> torch.Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module) -> None:
    """Train for a step as the loop does, with weight decay."""
    training_mode(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5, momentum=0.9, weight_decay=0.1)
    F.cross_entropy(model(images()), torch.arange(6) % 3).backward()
    optimizer.step()


def moved(model: nn.Module) -> set[str]:
    before = copy.deepcopy(model.state_dict())
    step(model)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_only_what_is_not_frozen_moves_batch_norm_statistics_included() -> None:
    assert moved(build("resnet8", "backbone.*")) == {"head.weight", "head.bias"}
    assert any("running_mean" in name for name in moved(build("resnet8")))


def test_a_part_of_the_layers_is_frozen_and_the_others_train() -> None:
    model = build("resnet8", "backbone.features.stem.*", "backbone.features.norm.*")
    found = moved(model)
    assert not any(name.startswith(("backbone.features.stem", "backbone.features.norm.")) for name in found)
    assert "backbone.features.stages.0.0.norm1.running_mean" in found
    assert not model.get_submodule("backbone.features.norm").training
    assert model.get_submodule("backbone.features.stages.0.0.norm1").training


def test_dropout_inside_a_frozen_part_drops_nothing() -> None:
    model = build("cnn", "backbone.*", dropout=0.5)
    training_mode(model)
    assert torch.equal(model(images()), model(images()))
    training_mode(model, training=False)
    assert not any(module.training for module in model.modules())
    loose = build("cnn", "backbone.features.*", dropout=0.5)
    training_mode(loose)
    assert not torch.equal(loose(images()), loose(images()))


def test_dropout_between_frozen_layers_drops_nothing_and_before_a_trained_one_does() -> None:
    layers = [nn.Dropout(), nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)]
    model = nn.Sequential(*layers, nn.Dropout())
    freeze(model, ["1.weight", "1.bias", "3.weight", "3.bias"])
    training_mode(model)
    dropouts = [layer.training for layer in model if isinstance(layer, nn.Dropout)]
    assert dropouts == [False, False, True, True]
    freeze(model := nn.Sequential(*layers), ["3.weight", "3.bias", "5.weight", "5.bias"])
    training_mode(model)
    assert [layer.training for layer in model if isinstance(layer, nn.Dropout)] == [True, True, False]


def test_frozen_tensors_neither_travel_nor_stay_as_personal_ones() -> None:
    model = build("cnn", "backbone.*")
    assert shared_names(model, "all") == shared_names(model, "trainable") == ("head.weight", "head.bias")
    assert personal_names(model, ("head.weight",)) == ("head.bias",)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_frozen_alike(copied: Any) -> None:
    model = build("resnet8", "backbone.*")
    again = copied(model)
    assert frozen_names(again) == frozen_names(model) != ()
    assert moved(again) == {"head.weight", "head.bias"}
    assert digest(frozen_state(again)) == digest(frozen_state(model))


def test_statistics_alone_cannot_be_frozen() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.frozen matches 'backbone.*running_mean', which its layer chan"
    ):
        build("resnet8", "*.running_*")


def test_the_digest_differs_with_values_names_and_shapes() -> None:
    state = {"w": torch.arange(4.0).reshape(2, 2)}
    others = [
        {"v": state["w"]},
        {"w": state["w"].flatten()},
        {"w": state["w"] + 1e-7},
        {"w": state["w"].half()},
    ]
    assert len({digest(one) for one in [state, *others]}) == 5
    assert digest({"w": state["w"].t().contiguous().t()}) == digest(state)
    assert digest({}) == ""


def test_nothing_is_frozen_by_default() -> None:
    model = build("cnn")
    assert frozen_names(model) == ()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
