"""The weighted sum: the same bits in any order and grouping, float64's value, one update in memory."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.aggregation import summation
from fedvision.aggregation.summation import WeightedSum, quantum
from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import RunError
from fedvision.types import ClientUpdate

State = dict[str, torch.Tensor]


def _models(count: int, seed: int = 0) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "w": torch.randn(3, 5, generator=generator) * 10.0 ** (place % 5 - 2),
            "b": torch.randn((), generator=generator),
        }
        for place in range(count)
    ]


def _streamed(models: list[State], weights: list[float], reference: State | None = None) -> State:
    total = WeightedSum(reference or {})
    for model, weight in zip(models, weights, strict=True):
        total.add(model, weight)
    return total.mean()


@settings(max_examples=40)
@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
    mixed=st.booleans(),
)
def test_any_order_and_any_grouping_give_the_same_bits(owners: list[int], seed: int, mixed: bool) -> None:
    models = _models(len(owners), seed)
    weights = [0.37 + (7 * place) % 50 for place in range(len(owners))]
    expected = _streamed(models, weights, models[0])
    workers = [WeightedSum(models[0]) for _ in range(4)]
    places = torch.randperm(len(owners), generator=torch.Generator().manual_seed(seed)).tolist()
    for place in places:
        workers[owners[place]].add(models[place], weights[place])
    total = workers.pop() if mixed else WeightedSum(models[0])
    for worker in workers:
        part = worker.part()
        if part.weights:
            total.merge(part)
    mean = total.mean()
    for name in ("w", "b"):
        assert torch.equal(mean[name], expected[name])


@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    block=st.sampled_from([1, 7, 1 << 22]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_several_models_at_once_have_the_bits_of_one_by_one(
    cuts: list[int], block: int, dtype: torch.dtype
) -> None:
    models = [{name: t.to(dtype) for name, t in model.items()} for model in _models(sum(cuts))]
    weights = [0.37 + (7 * place) % 50 for place in range(len(models))]
    reference = {name: tensor.float() for name, tensor in models[0].items()}
    total, start = WeightedSum(reference), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summation, "_BLOCK", block)
        for number, count in enumerate(cuts):
            some, own = models[start : start + count], weights[start : start + count]
            if number % 2:
                for model, weight in zip(some, own, strict=True):
                    total.add(model, weight)
            else:
                total.merge_now(total.partial(some, own))
            start += count
    mean = total.mean()
    for name, tensor in _streamed(models, weights, reference).items():
        assert torch.equal(mean[name], tensor)
        assert mean[name].dtype is dtype


def test_a_sum_of_several_that_does_not_fit_adds_nothing() -> None:
    total = WeightedSum()
    total.add({"w": torch.ones(2)}, 1.0)
    for states, weights in (
        ([{"w": torch.ones(2)}, {"x": torch.ones(2)}], [1.0, 1.0]),
        ([{"w": torch.ones(2)}] * 2, [1.0, math.inf]),
    ):
        with pytest.raises(ValueError, match=r"not in both: w, x|finite"):
            total.merge_now(total.partial(states, weights))
    with pytest.raises(ValueError, match="not in both"):
        total.merge_now(total.partial([{"x": torch.ones(2)}], [1.0]))
    assert torch.equal(total.mean()["w"], torch.ones(2))


@settings(max_examples=30)
@given(count=st.integers(1, 40), seed=st.integers(0, 1000))
def test_the_mean_is_float64s_to_the_last_digits_of_the_largest_value(count: int, seed: int) -> None:
    models = _models(count, seed)
    weights = [float(1 + (7 * place) % 50) for place in range(count)]
    mean = _streamed(models, weights, models[0])
    for name in ("w", "b"):
        exact = sum(w * m[name].double() for w, m in zip(weights, models, strict=True)) / sum(weights)
        # Half a quantum for each product, and the last rounding to float32.
        error = (mean[name].double() - exact).abs()
        assert bool((error <= quantum(models[0][name]) / 2 + exact.abs() * 2.0**-24).all())


def test_float32_sums_would_depend_on_the_order() -> None:
    # The contrast: were the sum taken in float32, adding 1 to 2^24 would lose it.
    big, one = ({"w": torch.tensor([value])} for value in (2.0**24, 1.0))
    first, last = _streamed([big, one, one], [1.0] * 3), _streamed([one, one, big], [1.0] * 3)
    assert float(first["w"]) == float(last["w"]) == (2.0**24 + 2) / 3


@pytest.mark.parametrize(
    ("largest", "digits"), [(1.0, -28), (0.9, -28), (1.1, -27), (100.0, -21), (0.0, -36), (1e-9, -36)]
)
def test_the_quantum_follows_the_global_tensors_largest_value(largest: float, digits: int) -> None:
    assert quantum(torch.tensor([0.0, -largest])) == 2.0**digits


def test_a_tensor_without_reference_counts_as_of_size_one() -> None:
    assert quantum(None) == 2.0**-28
    assert quantum(torch.zeros(0)) == 2.0**-36


def test_beyond_the_exact_range_the_mean_is_still_right() -> None:
    models = [{"w": torch.tensor([3.0e20])}, {"w": torch.tensor([1.0e20])}]
    assert float(_streamed(models, [1e6, 1e6])["w"]) == pytest.approx(2.0e20, rel=1e-6)


def test_large_tensors_are_summed_in_slices() -> None:
    values = torch.linspace(-1, 1, 200_001)
    mean = _streamed([{"w": values}, {"w": -values}, {"w": values}], [1.0, 1.0, 1.0])["w"]
    torch.testing.assert_close(mean, values / 3, rtol=0, atol=1e-8)


def test_layouts_are_summed_by_place_not_by_memory() -> None:
    images = torch.arange(24.0).reshape(1, 2, 3, 4)
    mean = _streamed([{"w": images}, {"w": images.to(memory_format=torch.channels_last)}], [1.0, 1.0])["w"]
    assert torch.equal(mean, images)


def test_the_mean_is_weighted() -> None:
    mean = _streamed(
        [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([5.0, 4.0])}],
        [1.0, 3.0],
    )
    assert mean["w"].tolist() == [4.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32_and_returned_as_halves(
    dtype: torch.dtype,
) -> None:
    # 300 times 1000 is beyond float16, and bfloat16 loses every 1 above 256.
    models = [{"w": torch.tensor([1000.0, 1.0], dtype=dtype)} for _ in range(300)]
    mean = _streamed(models, [1.0] * 300)["w"]
    assert mean.dtype == dtype
    assert mean.tolist() == models[0]["w"].tolist()


def test_float64_stays_float64() -> None:
    mean = _streamed(
        [
            {"w": torch.tensor([1.0], dtype=torch.float64)},
            {"w": torch.tensor([1 + 1e-12], dtype=torch.float64)},
        ],
        [1.0, 1.0],
    )
    assert mean["w"].dtype == torch.float64
    assert math.isclose(float(mean["w"]), 1 + 5e-13, rel_tol=1e-15)


def test_the_updates_are_not_changed() -> None:
    models = _models(20)
    before = [{name: value.clone() for name, value in model.items()} for model in models]
    _streamed(models, [1.0] * 20)
    assert all(
        torch.equal(model[name], old[name]) for model, old in zip(models, before, strict=True) for name in old
    )


def test_one_update_is_alive_at_a_time() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def updates() -> Iterator[ClientUpdate]:
        nonlocal most
        for position in range(20):
            most = max(most, sum(ref() is not None for ref in alive))
            tensor = torch.full((4,), float(position))
            alive.append(weakref.ref(tensor))
            update = ClientUpdate(client=position, position=position, examples=1, state={"w": tensor})
            del tensor
            yield update
            del update

    gc.disable()
    try:
        mean = FedAvg().combine({"w": torch.zeros(4)}, updates())
    finally:
        gc.enable()
    assert mean["w"].tolist() == [9.5] * 4
    assert most == 0


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_a_weight_must_be_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(ValueError, match="a weight must be finite and >= 0"):
        WeightedSum().add({"w": torch.ones(1)}, weight)


def test_the_models_of_a_sum_have_the_same_tensors() -> None:
    total = WeightedSum()
    total.add({"w": torch.ones(1)}, 1.0)
    with pytest.raises(ValueError, match="not in both: b"):
        total.add({"w": torch.ones(1), "b": torch.ones(1)}, 1.0)


def test_no_weight_is_no_mean() -> None:
    with pytest.raises(RunError, match="weights are 0"):
        WeightedSum().mean()
    total = WeightedSum()
    total.add({"w": torch.ones(1)}, 0.0)
    with pytest.raises(RunError, match="weights are 0"):
        total.mean()
