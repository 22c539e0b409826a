"""Which tensors travel, and that they leave and enter a model unharmed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedvision.errors import ConfigError
from fedvision.models.state import get_state, load_state, personal_names, shared_names, size_in_bytes


class Normed(nn.Module):
    """A convolution, two kinds of norm with statistics, a buffer with a batch norm's name, a frozen scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.odd_name = nn.BatchNorm2d(3)
        self.instance = nn.InstanceNorm2d(3, track_running_stats=True)
        self.register_buffer("running_mean", torch.ones(2))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.scale = nn.Parameter(torch.ones(2), requires_grad=False)


class Tied(nn.Module):
    """One weight under two names, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


CONV = ("conv.weight", "conv.bias")
NORM = ("odd_name.weight", "odd_name.bias")
STATISTICS = ("odd_name.running_mean", "odd_name.running_var")
OTHERS = ("instance.running_mean", "instance.running_var")


def test_all_are_the_floating_point_tensors_in_the_models_order() -> None:
    names = shared_names(Normed(), "all")
    assert names == ("scale", "running_mean", *CONV, *NORM, *STATISTICS, *OTHERS)
    assert [name for name in Normed().state_dict() if name in names] == list(names)


def test_only_batch_norms_statistics_stay_and_are_found_by_type() -> None:
    names = shared_names(Normed(), "no-batch-norm-statistics")
    assert names == ("scale", "running_mean", *CONV, *NORM, *OTHERS)
    assert personal_names(Normed(), names) == STATISTICS


def test_trainable_leaves_out_buffers_and_frozen_parameters() -> None:
    names = shared_names(Normed(), "trainable")
    assert names == (*CONV, *NORM)
    assert personal_names(Normed(), names) == ("scale", "running_mean", *STATISTICS, *OTHERS)


def test_a_batch_norm_without_statistics_or_affine_has_none() -> None:
    model = nn.BatchNorm1d(2, affine=False, track_running_stats=False)
    assert shared_names(model, "no-batch-norm-statistics") == ()


def test_a_tied_tensor_travels_once_and_loads_into_both() -> None:
    model, other = Tied(), Tied()
    for shared in ("all", "no-batch-norm-statistics", "trainable"):
        assert shared_names(model, shared) == ("first.weight",)  # type: ignore[arg-type]
    assert personal_names(model, ("first.weight",)) == ()
    load_state(other, get_state(model, ("first.weight",)))
    assert other.second.weight is other.first.weight
    assert torch.equal(other.second.weight, model.first.weight)


def test_a_state_is_a_copy() -> None:
    model = nn.Linear(2, 2)
    state = get_state(model, ("weight",))
    before = model.weight.detach().clone()
    state["weight"] += 1
    assert torch.equal(model.weight, before)
    assert not state["weight"].requires_grad


def test_a_state_is_contiguous_and_loading_keeps_channels_last() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    pointer, strides = model.weight.data_ptr(), model.weight.stride()
    assert strides == (27, 1, 9, 3)
    state = get_state(model, ("weight",))
    assert state["weight"].stride() == (27, 9, 3, 1)
    assert torch.equal(state["weight"], model.weight)
    expected = state["weight"] + 1
    load_state(model, {"weight": expected})
    assert (model.weight.data_ptr(), model.weight.stride()) == (pointer, strides)
    assert torch.equal(model.weight, expected)


def test_one_channel_weights_keep_the_strides_that_choose_the_fast_kernel() -> None:
    model = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
    assert get_state(model, ("weight",))["weight"].stride() == (9, 9, 3, 1)
    load_state(model, {"weight": torch.zeros(4, 1, 3, 3)})
    assert model.weight.stride() == (9, 1, 3, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 3).to(dtype)
    state = get_state(model, shared_names(model, "all"))
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    assert size_in_bytes(state) == (6 + 3) * dtype.itemsize
    load_state(model, {"bias": torch.full((3,), 0.5)})
    assert model.bias.dtype is dtype
    assert model.bias.tolist() == [0.5] * 3


def test_a_load_between_steps_disturbs_neither_gradient_nor_optimizer() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.ones(1, 2)).sum().backward()
    load_state(model, {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)})
    optimizer.step()
    assert model.weight.tolist() == [[-1.0, -1.0]]
    assert model.weight.requires_grad


def test_what_a_state_leaves_out_stays() -> None:
    model = nn.Linear(2, 1)
    before = model.bias.detach().clone()
    load_state(model, {"weight": torch.zeros(1, 2)})
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"bias": torch.ones(2), "wight": torch.ones(2)}, "no tensor 'wight'; did you mean 'weight'"),
        ({"bias": torch.ones(2), "weight": torch.ones(3, 2)}, r"'weight' is \[3, 2\], the model's \[2, 3\]"),
    ],
)
def test_a_state_of_another_model_is_refused_before_anything_is_written(
    state: dict[str, torch.Tensor], sentence: str
) -> None:
    model = nn.Linear(3, 2)
    before = model.bias.detach().clone()
    with pytest.raises(ConfigError, match=sentence):
        load_state(model, state)
    assert torch.equal(model.bias, before)


def test_a_scalar_is_not_spread_over_a_vector() -> None:
    with pytest.raises(ConfigError, match=r"'bias' is \[\], the model's \[2\]"):
        load_state(nn.Linear(3, 2), {"bias": torch.tensor(1.0)})


def test_asking_for_an_unknown_tensor_names_it() -> None:
    with pytest.raises(ConfigError, match="no tensor 'head'; known: bias, weight"):
        get_state(nn.Linear(2, 2), ("head",))
