"""A hollow model: the structure stays, the memory goes, and what is filled again is like any other model."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from fedvision.models.meta import filled, to_meta
from fedvision.models.state import get_state, load_state, shared_names


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[1].running_mean.fill_(0.5)  # type: ignore[operator, union-attr]
    return model


def test_what_is_hollow_takes_no_memory_and_sends_none() -> None:
    model = nn.Linear(1000, 1000)
    to_meta(model, ("weight", "bias"))
    assert sum(tensor.untyped_storage().nbytes() for tensor in model.state_dict().values()) == 8
    assert len(pickle.dumps(model)) < 10_000
    assert model.weight.shape == (1000, 1000)


@pytest.mark.parametrize("send", [False, True])
def test_a_filled_model_with_its_state_is_the_model_again(send: bool) -> None:
    model, expected = network(), network()
    names = shared_names(model, "no-batch-norm-statistics")
    state = get_state(model, names)
    to_meta(model, names)
    if send:
        model = pickle.loads(pickle.dumps(model))
    again = filled(model)
    assert all(float(tensor.abs().sum()) == 0 for tensor in get_state(again, names).values())
    load_state(again, state)
    images = torch.randn(2, 3, 3, 3)
    assert torch.equal(again(images), expected(images))
    again(images).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())
    # The hollow one is as it was: several hosts fill it.
    assert filled(model) is not again
    assert not torch.equal(filled(model)[0].weight, again[0].weight)  # type: ignore[index]


def test_a_tensor_with_two_names_stays_one() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    to_meta(model, shared_names(model, "all"))
    again = filled(model)
    assert again[0].weight is again[1].weight  # type: ignore[index]


def test_a_model_with_all_its_numbers_is_itself() -> None:
    model = network()
    assert filled(model) is model
