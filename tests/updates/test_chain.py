"""The chain: in order on the client, in reverse on the server, by hand; and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fedvision.config import ExperimentConfig
from fedvision.errors import PluginError
from fedvision.models.build import build_model
from fedvision.tasks.classification import Classification
from fedvision.types import State
from fedvision.updates import chain
from fedvision.updates.base import UpdateTransform
from fedvision.updates.chain import UpdateChain
from fedvision.updates.clip import Clip
from fedvision.updates.float16 import Float16
from fedvision.updates.schema import UpdateSchema
from fedvision.updates.top_k import TopK

RNG = np.random.default_rng(0)
RECEIVED: State = {"w": torch.tensor([1.0, 2.0, 3.0, 4.0]), "running_mean": torch.tensor([5.0])}
TRAINED: State = {"w": torch.tensor([1.0, 2.5, 3.0, 3.0]), "running_mean": torch.tensor([7.0])}


class Doubled(UpdateTransform):
    """Times two on the client."""

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        return {name: 2 * tensor for name, tensor in tensors.items()}, {}

    def decode(self, tensors: State, schema: UpdateSchema) -> State:
        return {name: tensor / 2 for name, tensor in tensors.items()}


class Shifted(UpdateTransform):
    """Plus one on the client, which also keeps how often it was called."""

    keeps_residual = True

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        times = residual.get("times", torch.zeros(1)) + 1
        return {name: tensor + 1 for name, tensor in tensors.items()}, {"times": times}

    def decode(self, tensors: State, schema: UpdateSchema) -> State:
        return {name: tensor - 1 for name, tensor in tensors.items()}


class Lying(UpdateTransform):
    """Makes float64 of what its schema calls float32."""

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        return {name: tensor.double() for name, tensor in tensors.items()}, {}


class Forgetful(UpdateTransform):
    """Returns a residual that is not declared."""

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        return tensors, tensors


class Reversed(UpdateTransform):
    """Returns the tensors in another order."""

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        return dict(reversed(tensors.items())), {}


def made(*transforms: UpdateTransform, learned: Sequence[str] = ("w",)) -> UpdateChain:
    return UpdateChain(UpdateSchema.of(RECEIVED), transforms, learned)


def plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def test_what_travels_is_the_change_and_buffers_as_they_are() -> None:
    """The change is 0, 0.5, 0, -1; its largest element is -1 at 3."""
    updates = made(TopK(fraction=0.25))
    sent, residuals = updates.encode(TRAINED, RECEIVED, {}, RNG)
    assert plain(sent) == {"top-k.values": [-1.0], "top-k.indices": [3], "running_mean": [7.0]}
    assert plain(residuals) == {"0.top-k": [0.0, 0.5, 0.0, 0.0]}
    assert plain(updates.decode(sent, RECEIVED)) == {"w": [1.0, 2.0, 3.0, 3.0], "running_mean": [7.0]}
    assert [f"{spec.name} {spec}" for spec in updates.sent.tensors] == [
        "top-k.values float32 [1]",
        "top-k.indices int32 [1]",
        "running_mean float32 [1]",
    ]
    assert (updates.sent.size, updates.received.size) == (12, 20)


def test_what_the_last_update_left_out_goes_with_the_next() -> None:
    updates = made(TopK(fraction=0.25))
    _, residuals = updates.encode(TRAINED, RECEIVED, {}, RNG)
    sent, residuals = updates.encode(RECEIVED, RECEIVED, residuals, RNG)
    assert plain(updates.decode(sent, RECEIVED))["w"] == [1.0, 2.5, 3.0, 4.0]
    assert not bool(residuals["0.top-k"].any())


def test_transforms_go_in_order_on_the_client_and_in_reverse_on_the_server() -> None:
    updates = made(Doubled(), Shifted())
    sent, residuals = updates.encode(TRAINED, RECEIVED, {}, RNG)
    assert plain(sent)["w"] == [1.0, 2.0, 1.0, -1.0]  # twice the change, and one
    assert plain(updates.decode(sent, RECEIVED)) == plain(TRAINED)
    assert plain(residuals) == {"1.times": [1.0]}


def test_the_order_of_a_transforms_tensors_is_no_matter() -> None:
    received: State = {"a": torch.zeros(2), "b": torch.zeros(3)}
    trained: State = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0, 5.0])}
    chain = UpdateChain(UpdateSchema.of(received), [Reversed(), TopK(fraction=1.0)], ["a", "b"])
    sent, _ = chain.encode(trained, received, {}, RNG)
    assert plain(chain.decode(sent, received)) == plain(trained)


def test_each_transform_gets_back_what_it_kept() -> None:
    updates = made(Shifted(), Doubled(), Shifted())
    residuals: State = {}
    for _ in range(2):
        _, residuals = updates.encode(TRAINED, RECEIVED, residuals, RNG)
    assert plain(residuals) == {"0.times": [2.0], "2.times": [2.0]}


def test_clipping_leaves_buffers_out_of_the_norm() -> None:
    """The change of w is 0, 0.5, 0, -1 of norm 1.118; that of the buffer, 2, does not count."""
    updates = made(Clip(max_norm=2.0))
    sent, _ = updates.encode(TRAINED, RECEIVED, {}, RNG)
    assert plain(sent) == {"w": [0.0, 0.5, 0.0, -1.0], "running_mean": [7.0]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_models_of_all_types_come_back_in_the_type_in_which_they_travel(dtype: torch.dtype) -> None:
    received, trained = {"w": torch.tensor([1.0, 2.0]).to(dtype)}, {"w": torch.tensor([1.5, 0.0]).to(dtype)}
    updates = UpdateChain(UpdateSchema.of(received), [Doubled()], ["w"])
    sent, _ = updates.encode(trained, received, {}, RNG)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert sent["w"].dtype is wide
    state = updates.decode(sent, received)
    assert state["w"].dtype is (torch.float32 if dtype is torch.bfloat16 else dtype)
    assert state["w"].tolist() == [1.5, 0.0]


def test_without_transforms_models_travel_as_they_are() -> None:
    updates = made()
    assert not updates
    assert not updates.keeps_residual
    assert updates.sent is updates.received


def test_a_transform_that_violates_its_contract_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"Lying.encode made what its schema does not have: the tensor 'w' is"
    ):
        made(Lying()).encode(TRAINED, RECEIVED, {}, RNG)
    with pytest.raises(
        ValueError, match=r"Forgetful.encode returned a residual and .*keeps_residual is false"
    ):
        made(Forgetful()).encode(TRAINED, RECEIVED, {}, RNG)


def experiment(*update: Any, **model: Any) -> UpdateChain:
    table = {"data": "digits", "model": model or {"use": "cnn", "width": 4}, "update": list(update)}
    config = ExperimentConfig.from_dict(table)
    network = build_model(
        config.model, task=Classification(), num_classes=10, in_channels=1, image_size=(8, 8), seed=0
    )
    return chain.build(config, network)


def test_an_experiments_chain_knows_parameters_from_buffers() -> None:
    updates = experiment({"use": "top-k", "fraction": 0.01}, "float16", use="resnet8", norm="batch")
    names = [spec.name for spec in updates.sent.tensors]
    assert names[:2] == ["top-k.values", "top-k.indices"]
    assert names[2:]
    assert all("running_" in name for name in names[2:])
    assert [spec.dtype for spec in updates.sent.tensors[:3]] == ["float16", "int32", "float32"]


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        (["top"], r"there is no such update; did you mean 'top-k'\?"),
        (["top-k"], "the key 'fraction' is missing"),
        ([{"use": "clip", "max_norm": -1.0}], r"\[update\] use = 'clip': max_norm must be > 0, not -1.0"),
        (
            [{"use": "top-k", "fraction": 0.1}, {"use": "clip", "max_norm": 1.0}],
            r"\[\[update\]\]: Clip: it gets the int32 tensor 'top-k.indices' .* put this table before",
        ),
        ([{"use": "top-k", "fraction": 0.1}] * 2, "TopK: it gets the int32 tensor 'top-k.indices'"),
        (["fractions:Fraction"], "it made a Fraction, which is no fedvision.updates.base.UpdateTransform"),
    ],
)
def test_chains_that_cannot_be_are_one_sentence_before_the_run(update: list[Any], sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        experiment(*update)


def test_two_tensors_of_one_name_are_refused() -> None:
    received = UpdateSchema.of({"w": torch.zeros(4), "top-k.values": torch.zeros(1)})
    with pytest.raises(ValueError, match="two tensors named 'top-k"):
        UpdateChain(received, [TopK(fraction=0.5)], ["w"])


def test_half_precision_of_what_was_chosen() -> None:
    updates = made(TopK(fraction=0.5), Float16())
    sent, _ = updates.encode(TRAINED, RECEIVED, {}, RNG)
    assert {name: str(tensor.dtype) for name, tensor in sent.items()} == {
        "top-k.values": "torch.float16",
        "top-k.indices": "torch.int32",
        "running_mean": "torch.float32",
    }
    assert plain(updates.decode(sent, RECEIVED)) == plain(TRAINED)
