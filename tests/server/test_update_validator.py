"""Replies that cannot be averaged are refused by name; so is a change that is absurdly large."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedvision.errors import InvalidUpdate
from fedvision.flower import codec
from fedvision.flower.train_reply import as_message
from fedvision.server.update_validator import UpdateValidator, norm_bound, remember
from fedvision.training.loop import TrainResult
from fedvision.types import State
from fedvision.updates.chain import UpdateChain
from fedvision.updates.schema import UpdateSchema
from fedvision.updates.top_k import TopK
from tests.replies import reply_with

STATE: State = {"w": torch.tensor([[3.0, 4.0]]), "b": torch.zeros(1)}


def update(**changes: Any) -> RecordDict:
    facts: dict[str, Any] = {"state": dict(STATE), "examples": 12, "loss": 0.7, "steps": 3, **changes}
    return codec.encode_update(TrainResult(**facts))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (update(state={"w": STATE["w"]}), "the tensor 'b' is missing"),
        (update(state={**STATE, "x": STATE["b"]}), "the tensor 'x' is not expected"),
        (update(state={**STATE, "b": torch.zeros(2)}), "the tensor 'b' is float32 [2], not float32 [1]"),
        (update(state={**STATE, "b": torch.tensor([float("nan")])}), "'b' holds NaN or infinity"),
        (update(state={**STATE, "w": torch.tensor([[1.0, float("inf")]])}), "'w' holds NaN or infinity"),
        (update(state={**STATE, "b": torch.tensor([1])}), "is int64 [1], not float32 [1]"),
        (update(examples=0), "it rests on 0 images"),
        (update(tensors={"control": {"w": torch.tensor([float("nan")])}}), "'control.w' holds NaN"),
        (update(examples=10**400), "it rests on"),
        (update(loss=10**400), "its training loss is"),
        (RecordDict({"metrics": MetricRecord({"num-examples": 1})}), "it lacks the record 'arrays'"),
        (
            RecordDict(
                {
                    "arrays": codec.encode_state(STATE),
                    "metrics": MetricRecord({"num-examples": 1, "train_loss": 0.0, "odd": 1}),
                }
            ),
            "its metrics are ['num-examples', 'odd', 'train_loss']",
        ),
        (
            RecordDict(
                {
                    "arrays": codec.encode_state(STATE),
                    "metrics": MetricRecord({"num-examples": 1, "train_loss": [0.0]}),
                }
            ),
            "its training loss is [0.0], not a number",
        ),
    ],
)
def test_a_reply_that_does_not_fit_is_refused_with_its_reason(content: RecordDict, reason: str) -> None:
    with pytest.raises(InvalidUpdate) as caught:
        UpdateValidator(STATE).decode(reply_with(content), 5)
    assert caught.value.client == 5
    assert reason in caught.value.cause


def test_a_good_reply_passes() -> None:
    UpdateValidator(STATE).decode(reply_with(update()), 5)


def test_opposite_infinities_do_not_cancel() -> None:
    state = {**STATE, "w": torch.tensor([[float("inf"), float("-inf")]])}
    with pytest.raises(InvalidUpdate, match="NaN or infinity"):
        UpdateValidator(STATE).decode(reply_with(update(state=state)), 5)


def test_the_norm_is_that_of_the_change_over_all_tensors() -> None:
    moved = {"w": STATE["w"] + torch.tensor([[0.0, 3.0]]), "b": torch.tensor([4.0])}
    assert UpdateValidator(STATE).decode(reply_with(update(state=moved)), 5).norm == pytest.approx(5.0)
    assert UpdateValidator(STATE).decode(reply_with(update()), 5).norm == 0.0


@given(
    st.lists(st.tuples(st.integers(0, 40_000), st.sampled_from([torch.float32, torch.float16])), min_size=1),
    st.floats(0.01, 100.0),
)
def test_the_norm_of_any_model_is_numpys(sizes: list[tuple[int, torch.dtype]], scale: float) -> None:
    generator = torch.Generator().manual_seed(len(sizes))
    old = {str(i): torch.randn(n, generator=generator).to(t) for i, (n, t) in enumerate(sizes)}
    new = {
        k: (t.float() + scale * torch.randn(t.shape, generator=generator)).to(t.dtype) for k, t in old.items()
    }
    expected = math.sqrt(sum(float(((new[k].double() - old[k].double()) ** 2).sum()) for k in old))
    content = codec.encode_update(TrainResult(state=new, examples=1, loss=0.0, steps=1))
    assert UpdateValidator(old).decode(reply_with(content), 0).norm == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )


def test_a_large_tensor_is_measured_in_pieces() -> None:
    old = {"w": torch.zeros(3 << 19)}
    content = codec.encode_update(
        TrainResult(state={"w": torch.ones(3 << 19)}, examples=1, loss=0.0, steps=1)
    )
    assert UpdateValidator(old).decode(reply_with(content), 0).norm == pytest.approx(math.sqrt(3 << 19))


def test_norm_of_a_change_beyond_float32_squares() -> None:
    """A change whose square float32 does not hold is measured all the same."""
    old = {"w": torch.zeros(1 << 15)}
    new = torch.full((1 << 15,), 1e25)
    content = codec.encode_update(TrainResult(state={"w": new}, examples=1, loss=0.0, steps=1))
    assert UpdateValidator(old).decode(reply_with(content), 0).norm == pytest.approx(
        1e25 * math.sqrt(1 << 15)
    )


def test_a_change_beyond_the_bound_is_refused_with_both_numbers() -> None:
    moved = update(state={**STATE, "b": torch.tensor([20.5])})
    assert UpdateValidator(STATE, bound=20.5).decode(reply_with(moved), 5).norm == 20.5
    with pytest.raises(InvalidUpdate) as caught:
        UpdateValidator(STATE, bound=20.0).decode(reply_with(moved), 5)
    assert caught.value.cause == "the norm of its change is 20.5, above the bound of 20"


def test_a_norm_beyond_all_numbers_is_refused_without_a_bound() -> None:
    state = {"w": torch.tensor([0.0], dtype=torch.float64)}
    content = codec.encode_update(
        TrainResult(state={"w": torch.tensor([1e200], dtype=torch.float64)}, examples=1, loss=0.0, steps=1)
    )
    with pytest.raises(InvalidUpdate, match="norm of its change is inf"):
        UpdateValidator(state).decode(reply_with(content), 5)


UPDATES = UpdateChain(UpdateSchema.of(STATE), [TopK(fraction=0.4)], ["w", "b"])


def sparse(values: list[float], places: list[int], dtype: torch.dtype = torch.int32) -> RecordDict:
    return update(
        state={"top-k.values": torch.tensor(values), "top-k.indices": torch.tensor(places, dtype=dtype)}
    )


def test_an_update_is_decoded_and_measured_as_the_model_it_stands_for() -> None:
    """W = (3, 4) | b = 0, of which one element, b, is changed by 2."""
    message = reply_with(sparse([2.0], [2]))
    reply = UpdateValidator(STATE, updates=UPDATES).decode(message, 5)
    assert (reply.client, reply.norm, reply.examples, reply.loss) == (5, 2.0, 12, 0.7)
    assert {name: tensor.tolist() for name, tensor in (reply.state or {}).items()} == {
        "w": [[3.0, 4.0]],
        "b": [2.0],
    }
    assert not message.content, "a model is held once"
    arrays = codec.decode_state(as_message(reply).content.array_records["arrays"])
    assert arrays["b"].tolist() == [2.0], "stock strategies get the model, too"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (update(), "the tensor 'top-k.indices' is missing (2 in all)"),
        (sparse([2.0], [3]), "it cannot be decoded: the indices of 'top-k' do not rise within 0 to 2"),
        (sparse([2.0], [2], torch.int64), "the tensor 'top-k.indices' is int64 [1], not int32 [1]"),
        (sparse([float("nan")], [0]), "the tensor 'w' holds NaN or infinity"),
        (sparse([25.0], [0]), "the norm of its change is 25, above the bound of 20"),
    ],
)
def test_an_update_that_is_none_is_refused_with_its_reason(content: RecordDict, reason: str) -> None:
    with pytest.raises(InvalidUpdate) as caught:
        UpdateValidator(STATE, 20.0, UPDATES).decode(reply_with(content), 5)
    assert caught.value.cause == reason


def test_the_bound_follows_the_usual_norm_and_the_models_own() -> None:
    assert norm_bound(1000.0, STATE, []) == pytest.approx(5000.0)  # the model's norm is 5
    assert norm_bound(1000.0, STATE, [0.2, 0.1, 9.0]) == pytest.approx(200.0)
    # Idle clients change nothing: a change as large as the model itself still passes.
    assert norm_bound(1000.0, STATE, [0.0]) == pytest.approx(5.0)
    assert norm_bound(1000.0, {"w": torch.zeros(2)}, []) == 1000.0
    assert norm_bound(0.0, STATE, [0.1]) == math.inf


def test_medians_of_the_last_rounds_are_remembered() -> None:
    assert remember([1.0], [5.0, 2.0, 900.0]) == [1.0, 5.0]
    assert remember([1.0], []) == [1.0]
    assert remember([1.0, 2.0, 3.0, 4.0, 5.0], [6.0]) == [2.0, 3.0, 4.0, 5.0, 6.0]
