"""What every built-in network must do; a new one in the registry's table is tested by being there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision import registry, seeding
from fedvision.config import ModelConfig
from fedvision.models.base import Backbone, halves
from fedvision.models.build import build_model
from fedvision.tasks.classification import Classification
from tests.methods import NETWORKS

NAMES = NETWORKS
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 20, 36)]
# Widths that are fast; a built-in without an entry is tested as it comes.
SMALL = {
    "cnn": {"width": 4, "dense": 8},
    "resnet8": {"width": 4},
    "resnet8-wide": {"width": 4, "norm": "group"},
    "resnet18": {"width": 4},
    "resnet20": {"width": 4},
    "rnn": {"hidden": 8},
    "vit": {"dim": 8, "depth": 1, "heads": 2},
    "fusion": {"width": 4, "dim": 8, "depth": 1, "heads": 2},
}


def build(name: str, shape: tuple[int, int, int], seed: int = 0, **keys: object) -> nn.Module:
    config = ModelConfig(use=name, args={**SMALL.get(name, {}), **keys})
    return build_model(
        config, task=Classification(), num_classes=5, in_channels=shape[0], image_size=shape[1:], seed=seed
    )


def images(shape: tuple[int, int, int], batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_every_network_learns_from_every_image_size(
    name: str, shape: tuple[int, int, int]
) -> None:
    model = build(name, shape)
    logits = model(images(shape))
    assert logits.shape == (3, 5)
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_its_head_after_its_backbone(name: str) -> None:
    model = halves(build(name, (1, 8, 8)), "this test").eval()
    features = model.backbone(images((1, 8, 8)))
    assert isinstance(model.backbone, Backbone)
    assert features.shape == (3, model.backbone.out_features)
    assert torch.equal(model(images((1, 8, 8))), model.head(features))
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "head"}


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_change_the_logits_of_another(name: str) -> None:
    model = build(name, (1, 8, 8))
    batch = images((1, 8, 8))
    together, alone = model(batch), model(batch[1:2])
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_settles_every_bit(name: str) -> None:
    first, again, other = (build(name, (1, 8, 8), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_training_and_evaluation_agree_to_the_bit_without_dropout(name: str) -> None:
    model = build(name, (1, 8, 8))
    batch = images((1, 8, 8))
    trained = model.train()(batch)
    with torch.no_grad():
        evaluated = model.eval()(batch)
    assert torch.equal(trained, evaluated)


@pytest.mark.parametrize("name", [name for name in NAMES if "dropout" in registry.parameters("model", name)])
def test_dropout_is_drawn_from_the_seeded_generator(name: str) -> None:
    model = build(name, (1, 8, 8), dropout=0.5)
    batch = images((1, 8, 8))
    draws = []
    for seed in (1, 1, 2):
        with seeding.torch_global(seed, "dropout"):
            draws.append(model(batch))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(model.eval()(batch), model(batch))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_holds_each_tensor_once_in_floating_point(name: str) -> None:
    state = build(name, (1, 8, 8)).state_dict()
    assert all(tensor.is_floating_point() for tensor in state.values())
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert list(state)[-2:] == ["head.weight", "head.bias"]
    assert state["head.weight"].shape[0] == 5


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_channels_last_gives_the_same_logits(name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, shape)
    batch = images(shape)
    before = model(batch)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(batch.to(memory_format=torch.channels_last)), before)
