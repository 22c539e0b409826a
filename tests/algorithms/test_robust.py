"""Median, trimmed mean and Krum: by hand, against NumPy and SciPy, and with attackers that must fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist

from fedvision.algorithms.base import RoundStrategy
from fedvision.algorithms.robust import Krum, Median, TrimmedMean, trimming_notices
from fedvision.errors import RunError
from fedvision.types import ClientUpdate

State = dict[str, torch.Tensor]


def _updates(states: list[State], examples: int = 1) -> list[ClientUpdate]:
    return [
        ClientUpdate(client=place, position=place, examples=examples + 100 * place, state=state)
        for place, state in enumerate(states)
    ]


def _combine(strategy: RoundStrategy, rows: list[list[float]]) -> list[float]:
    updates = _updates([{"w": torch.tensor(row)} for row in rows])
    values: list[float] = strategy.combine({"w": torch.zeros(len(rows[0]))}, iter(updates))["w"].tolist()
    return values


def _random(count: int, seed: int) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"a": torch.randn(3, 2, generator=generator), "b": torch.randn((), generator=generator)}
        for _ in range(count)
    ]


def test_median_by_hand() -> None:
    assert _combine(Median(), [[1.0, 9.0], [5.0, -1.0], [2.0, 0.0]]) == [2.0, 0.0]
    assert _combine(Median(), [[1.0], [100.0], [2.0], [4.0]]) == [3.0]
    assert _combine(Median(), [[1.0], [4.0]]) == [2.5]
    assert _combine(Median(), [[7.0]]) == [7.0]


@settings(max_examples=25)
@given(count=st.integers(1, 12), seed=st.integers(0, 1000))
def test_median_is_numpys(count: int, seed: int) -> None:
    states = _random(count, seed)
    new = Median().combine(states[0], iter(_updates(states)))
    for name in ("a", "b"):
        expected = np.median(np.stack([state[name].numpy() for state in states]), axis=0)
        np.testing.assert_allclose(new[name].numpy(), expected, rtol=1e-6)


def test_trimmed_mean_by_hand() -> None:
    rows = [[0.0], [1.0], [2.0], [3.0], [1000.0]]
    assert _combine(TrimmedMean(share=0.2), rows) == [2.0]
    assert _combine(TrimmedMean(share=0.19), rows) == pytest.approx([201.2])
    assert _combine(TrimmedMean(share=0.4), rows) == [2.0]


@settings(max_examples=25)
@given(count=st.integers(1, 12), seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.1, 0.25, 0.49]))
def test_trimmed_mean_is_scipys(count: int, seed: int, share: float) -> None:
    states = _random(count, seed)
    new = TrimmedMean(share=share).combine(states[0], iter(_updates(states)))
    for name in ("a", "b"):
        expected = stats.trim_mean(np.stack([state[name].numpy() for state in states]), share, axis=0)
        np.testing.assert_allclose(new[name].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_share_of_whole_clients_is_not_rounded_away() -> None:
    rows = [[float(value**2)] for value in range(100)]
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert _combine(TrimmedMean(share=0.29), rows) == pytest.approx([np.mean(np.arange(29, 71) ** 2)])


def test_a_share_next_to_a_half_leaves_the_middle() -> None:
    assert _combine(TrimmedMean(share=0.4999999999), [[1.0], [2.0], [4.0], [8.0]]) == [3.0]


def _krum_reference(states: list[State], malicious: int) -> np.ndarray:
    flat = np.stack([np.concatenate([v.numpy().ravel() for v in s.values()]) for s in states]).astype(
        np.float64
    )
    squares = np.sort(cdist(flat, flat, "sqeuclidean"), axis=1)
    scores: np.ndarray = squares[:, 1 : len(states) - malicious - 1].sum(axis=1)
    return scores


@settings(max_examples=25)
@given(
    malicious=st.integers(0, 3), extra=st.integers(0, 4), keep=st.integers(1, 3), seed=st.integers(0, 1000)
)
def test_krum_keeps_the_best_scores(malicious: int, extra: int, keep: int, seed: int) -> None:
    states = _random(2 * malicious + 3 + extra, seed)
    keep = min(keep, len(states) - malicious)
    new = Krum(malicious=malicious, keep=keep).combine(states[0], iter(_updates(states)))
    best = np.argsort(_krum_reference(states, malicious))[:keep]
    for name in ("a", "b"):
        expected = np.mean([states[place][name].numpy() for place in best], axis=0)
        np.testing.assert_allclose(new[name].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_krum_returns_one_clients_model_to_the_bit() -> None:
    states = _random(5, 3)
    new = Krum().combine(states[0], iter(_updates(states)))
    assert any(all(torch.equal(new[name], state[name]) for name in new) for state in states)


def test_krum_sees_small_differences_of_large_models() -> None:
    # ||a||^2 + ||b||^2 - 2ab of these in float32 is noise: 1e8 has steps of 8.
    rows = [[10000.0], [10000.5], [10000.25], [10003.0], [10001.5]]
    assert _combine(Krum(malicious=1), rows) == [10000.25]


@pytest.mark.parametrize(
    "strategy", [Median(), TrimmedMean(share=0.25), Krum(malicious=2), Krum(malicious=2, keep=4)]
)
def test_two_attackers_of_eight_do_not_get_through(strategy: RoundStrategy) -> None:
    honest = [[1.0 + 0.01 * place, -1.0] for place in range(6)]
    attackers = [[1e6, 1e6], [1e6, 1e6]]
    first, second = _combine(strategy, [*honest[:3], *attackers, *honest[3:]])
    assert 1.0 <= first <= 1.05 + 1e-6
    assert second == -1.0


def test_krum_selects_as_many_as_it_needs() -> None:
    rng = np.random.default_rng(0)
    assert len(Krum(malicious=3, fraction=0.1).select(1, range(20), rng)) == 9
    assert len(Krum(malicious=1, keep=6, fraction=0.1).select(1, range(20), rng)) == 7
    assert len(Krum(fraction=0.5).select(1, range(20), rng)) == 10


def test_krum_states_its_requirements() -> None:
    with pytest.raises(
        RunError, match="malicious = 1 and keep = 1 needs 5 updates in a round, but 4 came; have"
    ):
        _combine(Krum(malicious=1), [[1.0], [2.0], [3.0], [4.0]])
    with pytest.raises(RunError, match="malicious = 0 and keep = 5 needs 5 updates"):
        _combine(Krum(keep=5), [[1.0], [2.0], [3.0], [4.0]])


def test_halves_do_not_overflow() -> None:
    states = [{"w": torch.tensor([60000.0 - place], dtype=torch.float16)} for place in range(4)]
    for strategy in (Median(), TrimmedMean(), Krum(keep=2)):
        new = strategy.combine(states[0], iter(_updates(states)))["w"]
        assert new.dtype == torch.float16
        assert torch.isfinite(new).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrimmedMean(share=0.5), "share must be >= 0 and < 0.5, not 0.5"),
        (lambda: TrimmedMean(share=-0.1), "share must be >= 0 and < 0.5, not -0.1"),
        (lambda: Krum(malicious=-1), "malicious must be >= 0, not -1"),
        (lambda: Krum(keep=0), "keep must be >= 1, not 0"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("clients", "table", "noticed"),
    [
        (4, {}, True),
        (5, {}, False),
        (4, {"share": 0.25}, False),
        (9, {"fraction": 0.4}, True),
        (4, {"share": 0.0}, False),
    ],
)
def test_notice_on_a_trimmed_mean_that_trims_nobody(
    clients: int, table: dict[str, Any], noticed: bool
) -> None:
    notices = trimming_notices(TrimmedMean(**table), clients)
    assert bool(notices) == noticed
    if noticed:
        assert "nobody out of a round's 4 and is the plain mean; it takes 5 clients a round" in notices[0]
