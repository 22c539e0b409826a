"""The weighted sum: the same bits whoever sums a chunk, close to float64, one update in memory at a time."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.errors import RunError
from fedvision.strategies.summation import CHUNK, ChunkSum, WeightedSum, weighted_mean
from fedvision.types import Update

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


def _streamed(models: list[State], weights: list[float], positions: list[int]) -> State:
    total = WeightedSum()
    for model, weight, position in zip(models, weights, positions, strict=True):
        total.add(model, weight, position)
    return total.mean()


def _merged(models: list[State], weights: list[float], positions: list[int]) -> State:
    parts: dict[int, ChunkSum] = {}
    for model, weight, position in zip(models, weights, positions, strict=True):
        chunk = position // CHUNK
        parts.setdefault(chunk, ChunkSum(chunk)).add(model, weight, position)
    total = WeightedSum()
    for chunk in sorted(parts):
        total.merge(parts[chunk])
    return total.mean()


@settings(max_examples=30, deadline=None)
@given(
    positions=st.sets(st.integers(0, 60), min_size=1, max_size=40).map(sorted),
    seed=st.integers(0, 1000),
)
def test_merging_parts_gives_the_bits_of_streaming_and_the_value_of_float64(
    positions: list[int], seed: int
) -> None:
    models = _models(len(positions), seed)
    weights = [float(1 + (7 * place) % 50) for place in range(len(positions))]
    streamed, merged = (
        _streamed(models, weights, positions),
        _merged(models, weights, positions),
    )
    for name in ("w", "b"):
        assert torch.equal(streamed[name], merged[name])
        exact = sum(w * m[name].double() for w, m in zip(weights, models, strict=True)) / sum(weights)
        scale = max(float(m[name].abs().max()) for m in models)
        torch.testing.assert_close(streamed[name].double(), exact, rtol=0, atol=1e-6 * scale)


def test_a_partial_sum_may_be_mixed_with_single_updates() -> None:
    models, weights = _models(3 * CHUNK), [1.0] * (3 * CHUNK)
    part = ChunkSum(1)
    for position in range(CHUNK, 2 * CHUNK):
        part.add(models[position], 1.0, position)
    total = WeightedSum()
    for position in range(CHUNK):
        total.add(models[position], 1.0, position)
    total.merge(part)
    for position in range(2 * CHUNK, 3 * CHUNK):
        total.add(models[position], 1.0, position)
    expected = _streamed(models, weights, list(range(3 * CHUNK)))
    assert all(torch.equal(value, expected[name]) for name, value in total.mean().items())


def test_chunks_are_by_place_so_that_a_missing_client_regroups_nobody() -> None:
    # In float32 a 1 that is added to 2^24 is lost, and 2 is not: the result shows the grouping.
    big, one, none = ({"w": torch.tensor([4 * value])} for value in (2.0**24, 1.0, 0.0))

    def total(positions: list[int]) -> float:
        # Four weights of 1/4 make the mean the sum.
        return float(_streamed([big, one, one, none], [0.25] * 4, positions)["w"])

    assert total([0, 1, 2, 3]) == 2.0**24  # ((big + 1) + 1): both are lost
    assert total([0, 8, 9, 10]) == 2.0**24 + 2  # big + (1 + 1): chunks are eight places
    assert total([5, 11, 15, 32]) == 2.0**24 + 2  # gaps inside and between chunks change nothing
    assert total([0, 7, 8, 9]) == 2.0**24  # (big + 1) + (1 + 0)


def test_the_mean_is_weighted() -> None:
    mean = _streamed(
        [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([5.0, 4.0])}],
        [1.0, 3.0],
        [0, 1],
    )
    assert mean["w"].tolist() == [4.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32_and_returned_as_halves(
    dtype: torch.dtype,
) -> None:
    # 300 times 1000 is beyond float16, and bfloat16 loses every 1 above 256.
    models = [{"w": torch.tensor([1000.0, 1.0], dtype=dtype)} for _ in range(300)]
    mean = _streamed(models, [1.0] * 300, list(range(300)))["w"]
    assert mean.dtype == dtype
    assert mean.tolist() == models[0]["w"].tolist()


def test_float64_stays_float64() -> None:
    mean = _streamed(
        [
            {"w": torch.tensor([1.0], dtype=torch.float64)},
            {"w": torch.tensor([1 + 1e-12], dtype=torch.float64)},
        ],
        [1.0, 1.0],
        [0, 1],
    )
    assert mean["w"].dtype == torch.float64
    assert math.isclose(float(mean["w"]), 1 + 5e-13, rel_tol=1e-15)


def test_the_updates_are_not_changed() -> None:
    models = _models(20)
    before = [{name: value.clone() for name, value in model.items()} for model in models]
    _streamed(models, [1.0] * 20, list(range(20)))
    assert all(
        torch.equal(model[name], old[name]) for model, old in zip(models, before, strict=True) for name in old
    )


def test_one_update_is_alive_at_a_time() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def updates() -> Iterator[Update]:
        nonlocal most
        for position in range(20):
            most = max(most, sum(ref() is not None for ref in alive))
            tensor = torch.full((4,), float(position))
            alive.append(weakref.ref(tensor))
            update = Update(client=position, position=position, examples=1, state={"w": tensor})
            del tensor
            yield update
            del update

    gc.disable()
    try:
        mean = weighted_mean(updates(), lambda update: 1.0)
    finally:
        gc.enable()
    assert mean["w"].tolist() == [9.5] * 4
    assert most == 0


def test_places_must_rise() -> None:
    total = WeightedSum()
    total.add({"w": torch.ones(1)}, 1.0, 3)
    with pytest.raises(ValueError, match="position 3 does not follow 3"):
        total.add({"w": torch.ones(1)}, 1.0, 3)
    total.add({"w": torch.ones(1)}, 1.0, CHUNK)
    with pytest.raises(ValueError, match="chunk 0 does not follow chunk 1"):
        total.add({"w": torch.ones(1)}, 1.0, 4)
    with pytest.raises(ValueError, match="chunk 1 does not follow chunk 1"):
        total.merge(ChunkSum(1))


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_a_weight_must_be_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(ValueError, match="a weight must be finite and >= 0"):
        WeightedSum().add({"w": torch.ones(1)}, weight, 0)


def test_the_models_of_a_sum_have_the_same_tensors() -> None:
    total = WeightedSum()
    total.add({"w": torch.ones(1)}, 1.0, 0)
    with pytest.raises(ValueError, match="not in both: b"):
        total.add({"w": torch.ones(1), "b": torch.ones(1)}, 1.0, 1)


def test_no_weight_is_no_mean() -> None:
    with pytest.raises(RunError, match="weights are 0"):
        WeightedSum().mean()
    total = WeightedSum()
    total.add({"w": torch.ones(1)}, 0.0, 0)
    with pytest.raises(RunError, match="weights are 0"):
        total.mean()
