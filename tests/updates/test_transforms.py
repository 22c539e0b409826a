"""Clip, float16 and top-k by hand, and what they promise for any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvision.types import State
from fedvision.updates.base import UpdateTransform
from fedvision.updates.clip import Clip, l2_norm
from fedvision.updates.float16 import Float16
from fedvision.updates.schema import TensorSpec, UpdateSchema
from fedvision.updates.top_k import TopK, largest

RNG = np.random.default_rng(0)
NUMBERS = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)
CHANGE: State = {"w": torch.tensor([[3.0, 0.0], [-1.0, 0.5]]), "b": torch.tensor([4.0])}


def sent(transform: UpdateTransform, change: State = CHANGE, residual: State | None = None) -> State:
    return transform.encode(change, residual or {}, RNG)[0]


def through(transform: UpdateTransform, change: State) -> State:
    schema = UpdateSchema.of(change)
    encoded = sent(transform, change)
    assert UpdateSchema.of(encoded) == transform.schema(schema)
    return transform.decode(encoded, schema)


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_clip_scales_all_tensors_by_one_factor() -> None:
    """||(3, 4)|| = 5 over both tensors, so a bound of 2.5 halves both."""
    change = {"w": torch.tensor([[3.0]]), "b": torch.tensor([4.0])}
    assert equal(sent(Clip(max_norm=2.5), change), {"w": torch.tensor([[1.5]]), "b": torch.tensor([2.0])})


def test_clip_leaves_what_is_within_its_bound_to_the_bit() -> None:
    change = {"w": torch.tensor([[3.0]]), "b": torch.tensor([4.0])}
    assert equal(sent(Clip(max_norm=5.0), change), change)


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_a_clipped_update_is_within_the_bound_and_points_the_same_way(
    values: list[float], bound: float
) -> None:
    change = {"w": torch.tensor(values, dtype=torch.float32), "empty": torch.zeros(0)}
    clipped = sent(Clip(max_norm=bound), change)["w"].double()
    assert float(clipped.norm()) <= bound * (1 + 1e-6)
    factor = min(1.0, bound / max(l2_norm(change), 1e-300))
    torch.testing.assert_close(clipped, change["w"].double() * factor, rtol=1e-6, atol=1e-37)


def test_an_update_that_is_not_finite_stays_so() -> None:
    """The server refuses it by name; clipping must not turn it into zeros."""
    for bad in (math.nan, math.inf):
        clipped = sent(Clip(max_norm=1.0), {"w": torch.tensor([bad, 1.0])})
        assert not bool(clipped["w"].isfinite().all())
        assert not bool(sent(Float16(), {"w": torch.tensor([bad, 1.0])})["w"].isfinite().all())
        assert not bool(through(TopK(fraction=0.5), {"w": torch.tensor([1e30, bad])})["w"].isfinite().all())


def test_float16_rounds_to_nearest_and_comes_back_as_it_was_typed() -> None:
    back = through(Float16(), {"w": torch.tensor([1.0, 1.0 + 2**-11, 1.0 + 3 * 2**-11, 65504.0, 1e-9])})
    assert torch.equal(back["w"], torch.tensor([1.0, 1.0, 1.0 + 2**-9, 65504.0, 0.0]))
    assert back["w"].dtype is torch.float32


def test_float16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"the change of 'w' reaches 7e\+04 and float16 ends at 65,504"):
        sent(Float16(), {"w": torch.tensor([1.0, -70_000.0])})


def test_float16_leaves_whole_numbers_alone() -> None:
    change = {"places": torch.tensor([70_000], dtype=torch.int32), "w": torch.ones(1)}
    assert [str(spec.dtype) for spec in Float16().schema(UpdateSchema.of(change)).tensors] == [
        "int32",
        "float16",
    ]
    assert equal(through(Float16(), change), change)


def test_top_k_of_the_model_sends_its_largest_elements() -> None:
    """Of 3, 0, -1, 0.5 | 4 the two largest are 3 at 0 and 4 at 4; what is left is kept."""
    encoded, remainder = TopK(fraction=0.4).encode(CHANGE, {}, RNG)
    assert encoded["top-k.values"].tolist() == [3.0, 4.0]
    assert encoded["top-k.indices"].tolist() == [0, 4]
    assert remainder["top-k"].tolist() == [0.0, 0.0, -1.0, 0.5, 0.0]


def test_top_k_of_each_tensor_sends_something_of_each() -> None:
    encoded = sent(TopK(fraction=0.4, scope="tensor"))
    assert {name: tensor.tolist() for name, tensor in encoded.items()} == {
        "w.values": [3.0, -1.0],
        "w.indices": [0, 2],
        "b.values": [4.0],
        "b.indices": [0],
    }


def test_what_was_left_out_is_added_to_the_next_update() -> None:
    """-1 and 0.5 wait; with another 0.8 the latter overtakes 1.2."""
    transform = TopK(fraction=0.2)
    residual: State = {}
    sent_values = []
    for change in ([4.0, 0.0, -1.0, 0.5, 0.0], [0.0, 1.2, 0.0, 0.8, 0.0], [0.0] * 5, [0.0] * 5):
        encoded, residual = transform.encode({"w": torch.tensor(change)}, residual, RNG)
        sent_values.append((encoded["top-k.indices"].item(), round(encoded["top-k.values"].item(), 6)))
    assert sent_values == [(0, 4.0), (3, 1.3), (1, 1.2), (2, -1.0)]
    assert not bool(residual["top-k"].any())


def test_without_error_feedback_nothing_is_kept() -> None:
    transform = TopK(fraction=0.2, error_feedback=False)
    assert not transform.keeps_residual
    assert transform.encode(CHANGE, {}, RNG)[1] == {}


@given(
    st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=40),
    st.lists(st.floats(-8, 8, width=16), min_size=0, max_size=9),
    st.floats(0.01, 1.0),
    st.sampled_from(["model", "tensor"]),
)
def test_sent_and_kept_are_the_update_and_what_was_kept_before(
    first: list[float], second: list[float], fraction: float, scope: str
) -> None:
    change = {"a": torch.tensor(first), "b": torch.tensor(second, dtype=torch.float32)}
    transform = TopK(fraction=fraction, scope=scope)  # type: ignore[arg-type]
    schema, residual, total = UpdateSchema.of(change), {}, dict.fromkeys(change, torch.zeros(()))
    for _ in range(3):
        encoded, residual = transform.encode(change, residual, RNG)
        assert UpdateSchema.of(encoded) == transform.schema(schema)
        total = {name: total[name] + part for name, part in transform.decode(encoded, schema).items()}
    left = residual["top-k"].split([len(first), len(second)]) if scope == "model" else residual.values()
    for (name, tensor), rest in zip(change.items(), left, strict=True):
        torch.testing.assert_close(total[name] + rest, 3 * tensor)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_the_largest_are_those_of_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda place: (-abs(values[place]), place))
    assert largest(torch.tensor(values, dtype=torch.float32), count).tolist() == sorted(order[:count])


@pytest.mark.parametrize("places", [[1, 0], [1, 1], [-1, 2], [3, 5]])
def test_indices_that_no_client_makes_are_refused(places: list[int]) -> None:
    encoded = {"top-k.values": torch.ones(2), "top-k.indices": torch.tensor(places, dtype=torch.int32)}
    with pytest.raises(ValueError, match="the indices of 'top-k' do not rise within 0 to 4"):
        TopK(fraction=0.4).decode(encoded, UpdateSchema.of(CHANGE))


def test_a_huge_tensor_has_wide_indices() -> None:
    huge = UpdateSchema((TensorSpec("w", "float32", (2**31,)),))
    assert [spec.dtype for spec in TopK(fraction=0.1).schema(huge).tensors] == ["float32", "int64"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Clip(max_norm=0.0), "max_norm must be > 0, not 0.0"),
        (lambda: TopK(fraction=0.0), "fraction must be > 0 and <= 1, not 0.0"),
        (lambda: TopK(fraction=1.5), "fraction must be > 0 and <= 1, not 1.5"),
        (lambda: TopK(fraction=0.1, scope="layer"), "scope must be"),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range_are_refused(make: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()  # type: ignore[operator]
