"""Selection, instruction and the arguments that every strategy takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fedvision import seeding
from fedvision.algorithms.base import RoundStrategy, cohort_size, draw
from fedvision.algorithms.fedprox import FedProxClient
from fedvision.types import ClientUpdate
from tests.work import peak_memory


class _Plain(RoundStrategy):
    client = FedProxClient

    def combine(
        self, state: dict[str, torch.Tensor], updates: Iterator[ClientUpdate]
    ) -> dict[str, torch.Tensor]:
        return state


def _draw(strategy: RoundStrategy, clients: list[int], round: int = 1) -> list[int]:
    return strategy.select(round, clients, seeding.numpy_stream(0, "select", round))


@pytest.mark.parametrize(
    ("clients", "fraction", "least", "size"),
    [(10, 1.0, 1, 10), (10, 0.25, 1, 2), (10, 0.26, 1, 3), (10, 0.01, 1, 1), (10, 0.1, 4, 4), (3, 0.5, 9, 3)],
)
def test_size_of_the_cohort(clients: int, fraction: float, least: int, size: int) -> None:
    assert cohort_size(clients, fraction, least) == size
    assert len(_draw(_Plain(fraction=fraction, min_clients=least), list(range(clients)))) == size


def test_the_cohort_rises_and_holds_nobody_twice() -> None:
    clients = [9, 4, 30, 2, 17, 8, 11, 5]
    cohort = _draw(_Plain(fraction=0.6), clients)
    assert cohort == sorted(set(cohort))
    assert set(cohort) <= set(clients)
    assert all(type(client) is int for client in cohort)


def test_everyone_is_drawn_about_equally_often() -> None:
    strategy = _Plain(fraction=0.3)
    drawn = np.bincount(
        [client for round in range(1, 1001) for client in _draw(strategy, list(range(10)), round)]
    )
    # 1000 draws with probability 0.3: the standard deviation is 14.5.
    assert drawn.min() > 240
    assert drawn.max() < 360


def test_the_draw_depends_on_its_stream_alone() -> None:
    strategy = _Plain(fraction=0.5)
    first = _draw(strategy, list(range(20)), round=3)
    _draw(strategy, list(range(20)), round=4)
    assert _draw(strategy, list(range(20)), round=3) == first
    assert _draw(strategy, list(range(20)), round=4) != first


def test_client_configs_are_empty_by_default() -> None:
    client_config = _Plain().configure(1, {}, 0)
    assert not client_config.numbers
    assert not client_config.tensors


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be > 0 and <= 1, not"):
        _Plain(fraction=fraction)


def test_min_clients_out_of_range() -> None:
    with pytest.raises(ValueError, match="min_clients must be >= 1, not 0"):
        _Plain(min_clients=0)


class _Counted(Sequence[int]):
    """A million clients, and how many of them were looked at."""

    drawn_from = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, place: Any) -> Any:
        self.drawn_from += 1
        return 3 * range(1_000_000)[place]


@pytest.mark.parametrize("clients", [1, 2, 10, 1000, 70_000])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_the_draw_is_that_of_shuffling_a_list_of_the_clients(clients: int, seed: int) -> None:
    names = [7 * k + 3 for k in range(clients)]
    shuffled = np.random.default_rng(seed).permutation(names)
    size = cohort_size(clients, 0.3, 1)
    for given in (names, range(3, 7 * clients + 3, 7)):
        drawn = _Plain(fraction=0.3).select(1, given, np.random.default_rng(seed))
        assert drawn == sorted(shuffled[:size].tolist())


def test_a_million_clients_are_not_gone_through() -> None:
    clients = _Counted()
    cohort = _Plain(fraction=0.001).select(1, clients, np.random.default_rng(0))
    assert len(cohort) == clients.drawn_from == 1000
    assert cohort == sorted(set(cohort))
    strategy, rng = _Plain(fraction=0.001), np.random.default_rng(0)
    # Of 0.1 MB; an array of the range takes 8 MB.
    assert peak_memory(lambda: strategy.select(1, range(1_000_000), rng)) < 1_000_000


@pytest.mark.long
def test_of_a_large_population_everyone_is_drawn_as_often() -> None:
    rng = np.random.default_rng(0)
    drawn = np.concatenate([draw(range(200_000), 100_000, rng) for _ in range(40)])
    thousands = np.bincount(drawn // 1000, minlength=200)
    # 40 draws of 1000 with probability 1/2: the standard deviation is 100.
    assert abs(thousands - 20_000).max() < 500
    cohort = draw(range(7, 1_000_007), 1000, rng)
    assert cohort == sorted(set(cohort))
    assert 7 <= min(cohort) < 100_000
    assert 900_000 < max(cohort) < 1_000_007
    assert all(type(client) is int for client in cohort)
