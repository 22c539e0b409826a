"""A late change is brought to the present model, smaller with its age, and never the present model's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvision.flower import codec
from fedvision.flower.train_reply import TrainReply
from fedvision.server.staleness_weighting import rebase_update, weight
from fedvision.training.loop import TrainResult
from fedvision.types import State
from tests.replies import decoded


def reply(state: State, **groups: State) -> TrainReply:
    update = TrainResult(state=state, examples=3, loss=0.5, steps=1, tensors=groups)
    return decoded(codec.encode_update(update))


def brought(answer: TrainReply, then: State, now: State, share: float) -> State:
    rebase_update(answer, then, now, share)
    return answer.update(0).state


def test_weights_fall_with_age() -> None:
    assert [weight(age, 0.5) for age in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert weight(7, 0.0) == 1.0
    assert weight(3, 1.0) == 0.25


def test_the_change_moves_to_the_present_model() -> None:
    then, now = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([10.0, 20.0])}
    answer = reply({"w": torch.tensor([3.0, 0.0])})
    assert brought(answer, then, now, 0.5)["w"].tolist() == [11.0, 19.0]
    assert (answer.loss, answer.examples) == (0.5, 3)


def test_running_statistics_are_mixed_and_stay_positive() -> None:
    name = "norm.running_var"
    then, now = {name: torch.tensor([9.0])}, {name: torch.tensor([1.0])}
    assert brought(reply({name: torch.tensor([2.0])}), then, now, 0.25)[name].tolist() == [1.25]


def test_other_tensors_are_left_alone() -> None:
    model = {"w": torch.zeros(1)}
    answer = reply({"w": torch.ones(1)}, control={"w": torch.tensor([4.0])})
    rebase_update(answer, model, model, 0.5)
    assert answer.update(0).tensors["control"]["w"].tolist() == [4.0]


@given(st.floats(0, 1), st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_of_an_unchanged_model_nothing_is_left_but_the_share(share: float, kind: torch.dtype) -> None:
    then = {"w": torch.tensor([0.5, -2.0], dtype=kind)}
    answer = brought(reply({"w": then["w"] + 1}), then, then, share)
    assert answer["w"].dtype is kind
    torch.testing.assert_close(answer["w"], then["w"] + share, rtol=1e-3, atol=1e-3)
