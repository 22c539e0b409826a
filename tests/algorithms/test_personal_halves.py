"""FedRep, Ditto, APFL and q-FedAvg with each loss and sampler, on clients that lack classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from fedvision import registry
from fedvision.data.shards import Shard
from fedvision.models.state import get_state
from fedvision.training.client_half import client_half
from fedvision.training.evaluate import mean_loss
from fedvision.training.loop import TrainResult, fit
from fedvision.types import ClientConfig, PluginSpec, State, TrainRequest
from tests.training.client_cases import CLASSES, LOSSES, SIDE, network, settings

NUMBERS = {
    "fedrep": {"head_epochs": 2.0},
    "ditto": {"lam": 0.5, "personal_epochs": 0.0},
    "apfl": {"alpha": 0.5, "adaptive": 1.0},
    "q-fedavg": {},
}
SAMPLERS = sorted(registry.BUILTINS["sampler"])


def shard(counts: list[int]) -> Shard:
    """Return a client with so many images of each class."""
    labels = np.repeat(np.arange(CLASSES), counts)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 1), np.uint8)
    return Shard(images=images, labels=labels, indices=np.arange(len(labels)))


def two_rounds(use: str, counts: list[int], loss: str, sampler: str = "shuffle") -> list[TrainResult]:
    """Train a client in two rounds, the second from what it remembers."""
    model, own, found = network(), shard(counts), list[TrainResult]()
    setting = settings(lr=0.1, sampler=PluginSpec(use=sampler))
    memory: State = {}
    for round in (1, 2):
        built = registry.build(
            "loss", PluginSpec(use=loss), counts=torch.tensor(counts), round=round, rounds=5
        )
        names = [name for name in model.state_dict() if use != "fedrep" or not name.startswith("head.")]
        request = TrainRequest(
            round=round,
            client=0,
            state=get_state(model, names),
            client_config=ClientConfig(numbers=NUMBERS[use]),
            algorithm=use,
            own_loss=mean_loss(model, own, setting.forward, built, batch_size=8),
        )
        algorithm = client_half(request)()
        found.append(
            fit(model, own, request, loss=built, algorithm=algorithm, settings=setting, memory=memory)
        )
        memory = found[-1].memory
    return found


def assert_sound(results: list[TrainResult]) -> None:
    for one in results:
        assert math.isfinite(one.loss)
        for state in (one.state, one.memory, one.personal, *one.tensors.values()):
            assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


@pytest.mark.parametrize("use", NUMBERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_on_a_client_that_lacks_classes(use: str, loss: str) -> None:
    first, second = two_rounds(use, [7, 0, 0, 2], loss)
    assert_sound([first, second])
    assert any(not torch.equal(first.state[name], second.state[name]) for name in first.state)


@pytest.mark.parametrize("use", NUMBERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler(use: str, sampler: str) -> None:
    assert_sound(two_rounds(use, [7, 0, 3, 1], "cross-entropy", sampler))


@pytest.mark.parametrize("use", NUMBERS)
@trials(max_examples=12)
@given(counts=st.lists(st.integers(0, 4), min_size=CLASSES, max_size=CLASSES).filter(any))
def test_no_vacant_class_makes_a_number_infinite(use: str, counts: list[int]) -> None:
    assert_sound(two_rounds(use, counts, "logit-adjusted"))
