"""Faults in a strategy's own code are one sentence that names the method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg

from fedvision.algorithms.base import RoundStrategy
from fedvision.algorithms.robust import Krum
from fedvision.errors import RunError
from fedvision.flower.strategy import FlowerStrategy
from fedvision.types import ClientConfig, ClientUpdate, State
from tests.flower.delayed_grid import Answer, SlowGrid, play, plus_one


class _Own(RoundStrategy):
    """Does what the test sets in one of its methods."""

    def __init__(self, method: str, result: Any) -> None:
        super().__init__()
        self.method, self.result = method, result

    def _do(self, method: str) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def select(self, round: int, clients: Sequence[int], rng: np.random.Generator) -> list[int]:
        return self._do("select") if self.method == "select" else list(clients)  # type: ignore[no-any-return]

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        if self.method == "configure" and client == 1:
            return self._do("configure")  # type: ignore[no-any-return]
        return super().configure(round, state, client)

    def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
        first = next(updates).state
        return self._do("combine") if self.method == "combine" else first  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("method", "result", "sentence"),
    [
        ("combine", None, "returned a NoneType; it must return"),
        ("combine", {"w": np.zeros(1)}, "returned a ndarray as 'w'; it must return"),
        ("combine", KeyError("w"), "raised KeyError: 'w'; correct it"),
        ("combine", ZeroDivisionError("by zero"), "raised ZeroDivisionError: by zero"),
        ("combine", RuntimeError("sizes differ\n at line 3"), "raised RuntimeError: sizes differ; correct"),
        ("combine", StopIteration(), "raised StopIteration; correct"),
        ("combine", SystemExit(3), "raised SystemExit: 3; correct"),
        ("configure", OSError("no such table"), "raised OSError: no such table; correct"),
        ("configure", None, "returned a NoneType; it must return a fedvision.types.ClientConfig"),
        ("configure", ClientConfig(tensors={"c": {"w": 3}}), "raised "),  # type: ignore[dict-item]
        ("select", RuntimeError("no stream"), "raised RuntimeError: no stream"),
        ("select", None, "raised TypeError"),
        ("select", [0, 1.5], "raised TypeError"),
        ("select", [0, 9], "named client 9, which is none of the clients that can work now; it must"),
        ("select", [0, -1], "named client -1, which is none"),
        ("select", [1, 0, 1], "named client 1 twice; it must choose"),
    ],
)
def test_a_method_that_fails(method: str, result: Any, sentence: str) -> None:
    with pytest.raises(RunError) as caught:
        play(SlowGrid(), strategy=FlowerStrategy(_Own(method, result), seed=0))
    assert str(caught.value).startswith(f"round 1: {method} of the strategy _Own {sentence}")


def test_a_choice_in_numpys_integers() -> None:
    strategy = FlowerStrategy(_Own("select", np.array([2, 0])), seed=0)
    assert play(SlowGrid(), rounds=1, strategy=strategy).records[0]["clients"] == [2, 0]


class _Stock(FlowersFedAvg):
    """Flower's own with one method replaced."""

    def __init__(self, method: str, result: Any) -> None:
        super().__init__(min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1)

        def do(*args: Any) -> Any:
            if result == ["twice"]:
                return [Message(RecordDict(), 101, "train")] * 2
            if isinstance(result, BaseException):
                raise result
            return result

        setattr(self, method, do)


@pytest.mark.parametrize(
    ("method", "result", "sentence"),
    [
        ("configure_train", RuntimeError("no arrays"), "raised RuntimeError: no arrays; correct"),
        ("configure_train", None, "raised TypeError"),
        ("configure_train", ["hello"], "made a str; it must make"),
        ("configure_train", ["twice"], "made two messages for node 101; it must"),
        ("aggregate_train", ValueError("shapes"), "raised ValueError: shapes; correct"),
        ("aggregate_train", None, "returned a NoneType; it must return"),
        ("aggregate_train", ({}, None), "returned a dict; it must return"),
        ("configure_evaluate", LookupError("whom"), "raised LookupError: whom"),
        ("aggregate_evaluate", AssertionError(), "raised AssertionError; correct"),
    ],
)
def test_a_strategy_of_flower_that_fails(method: str, result: Any, sentence: str) -> None:
    with pytest.raises(RunError) as caught:
        play(SlowGrid(), strategy=_Stock(method, result), holdout=0.2)
    assert str(caught.value).startswith(f"round 1: {method} of the strategy _Stock {sentence}")


def test_what_the_carrier_raises_is_not_the_strategys_fault() -> None:
    error = ConnectionError("the line is down")

    def answer(client: int, round: int, state: State) -> State:
        raise error

    for strategy in (FlowerStrategy(_Own("", None), seed=0), _Stock("summary", None)):
        grid = SlowGrid(answer=answer)
        with pytest.raises(ConnectionError) as caught:
            play(grid, strategy=strategy)
        assert caught.value is error


def _loses(*rounds: int) -> Answer:
    def answer(client: int, round: int, state: State) -> State | Error:
        return Error(code=2, reason="no disk") if client == 2 and round in rounds else plus_one(0, 0, state)

    return answer


def test_too_few_updates_fail_the_round_alone() -> None:
    diary = play(SlowGrid(answer=_loses(2)), strategy=FlowerStrategy(Krum(), seed=0))
    assert diary.values() == [1.0, 1.0, 2.0]
    assert [record["changed"] for record in diary.records] == [True, False, True]
    reasons = {item["client"]: item["reason"] for item in diary.records[1]["refused"]}
    needs = "krum with malicious = 0 and keep = 1 needs 3 updates in a round, but 2 came"
    assert reasons.pop(2) == "no disk"
    assert sorted(reasons) == [0, 1]
    assert all(reason.startswith(needs) for reason in reasons.values())


def test_too_few_updates_in_every_round_end_the_run() -> None:
    grid, strategy = SlowGrid(answer=_loses(*range(9))), FlowerStrategy(Krum(), seed=0)
    with pytest.raises(RunError, match="no client succeeded in 2 rounds in a row; client 2: no disk"):
        play(grid, rounds=9, failed_rounds=2, strategy=strategy)
