"""Late replies in algorithms and update chains: SCAFFOLD, residuals, changes of the model that was sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg

from fedvision.algorithms.robust import Median
from fedvision.algorithms.scaffold import Scaffold
from fedvision.flower.strategy import FlowerStrategy
from fedvision.types import ClientUpdate, State
from fedvision.updates.chain import UpdateChain
from fedvision.updates.schema import UpdateSchema
from fedvision.updates.top_k import TopK
from tests.flower.delayed_grid import SlowGrid, eight, play, plus_one


def test_order_of_late_replies() -> None:
    """Late answers reach strategies that see every update after the others."""
    seen: list[tuple[int, int, float]] = []

    class Looking(Median):
        def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
            found = list(updates)
            seen.extend((update.client, update.position, float(update.state["w"])) for update in found)
            return {"w": state["w"] + 1}

    grid = SlowGrid(seconds={(0, 1): 2.5, (1, 2): 1.5}, answer=eight)
    play(
        grid,
        rounds=2,
        strategy=FlowerStrategy(Looking(), seed=0),
        deadline=2.0,
        late="next-round",
        staleness=0.0,
    )
    # In round 2 client 2 answers first, then client 1, then client 0 with its task of round 1.
    assert seen == [(1, 1, 1.0), (2, 2, 8.0), (1, 0, 2.0), (2, 1, 9.0), (0, 2, 2.0)]


def test_scaffolds_control_counts_in_full_however_late() -> None:
    scaffold = Scaffold()

    def answer(client: int, round: int, state: State) -> State:
        return {"w": state["w"] + 1, "control": torch.full((1,), 6.0)}

    grid = SlowGrid(seconds={(2, 1): 2.5}, answer=answer)
    play(
        grid,
        rounds=2,
        strategy=FlowerStrategy(scaffold, seed=0),
        deadline=2.0,
        late="next-round",
        staleness=1.0,
    )
    # Five trainings of three clients: each adds a third of its change to c.
    assert float(scaffold.control["w"]) == pytest.approx(5 * 6.0 / 3)
    assert scaffold.clients == 3


def test_a_reply_whose_control_is_not_the_trained_parameters_is_refused() -> None:
    """One of another shape was broadcast, and one that is missing ended the run."""
    scaffold = Scaffold()

    def answer(client: int, round: int, state: State) -> State:
        control = {0: torch.ones(4), 1: torch.ones(1)}
        return {"w": state["w"] + 1, **({"control": control[client]} if client in control else {})}

    start: State = {"w": torch.zeros(4)}
    (record,) = play(
        SlowGrid(answer=answer),
        rounds=1,
        strategy=FlowerStrategy(scaffold, seed=0),
        state=start,
        updates=UpdateChain(UpdateSchema.of(start), [], ["w"]),
    ).records
    assert record["clients"] == [0]
    assert [item["reason"] for item in record["refused"]] == [
        "in the group 'control' the tensor 'w' is float32 [1], not float32 [4]",
        "it lacks the group of tensors 'control'; it must use the strategy's client half",
    ]
    torch.testing.assert_close(scaffold.control["w"], torch.full((4,), 1 / 3))


def test_tensors_that_nobody_asked_for_are_refused() -> None:
    def answer(client: int, round: int, state: State) -> State:
        return {"w": state["w"] + 1, **({"control": torch.ones(4)} if client == 2 else {})}

    (record,) = play(SlowGrid(answer=answer), rounds=1).records
    (refused,) = record["refused"]
    assert (record["clients"], refused["client"]) == ([0, 1], 2)
    assert (
        refused["reason"] == "it has a group of tensors 'control' beside its update, which nobody asked for"
    )


UPDATES = UpdateChain(UpdateSchema.of({"w": torch.zeros(1)}), [TopK(fraction=1.0)], ["w"])


LATE = {"deadline": 2.0, "late": "next-round", "staleness": 1.0}


def eight_of_top_k(client: int, round: int, state: State) -> State:
    """Client 2's change is 8, the others' 1."""
    change = {"w": eight(client, round, state)["w"] - state["w"]}
    sent, _ = UPDATES.encode(change, {"w": torch.zeros(1)}, {}, np.random.default_rng(0))
    return sent


def test_a_late_change_is_one_of_the_model_that_was_sent() -> None:
    """The numbers of ``test_a_late_answer_is_used_in_the_next_round_with_its_weight``."""
    grid = SlowGrid(seconds={(2, 1): 2.5, (0, 2): 2.0, (1, 2): 2.0}, answer=eight_of_top_k)
    diary = play(grid, rounds=3, updates=UPDATES, **LATE)
    assert diary.values() == [1.0, 3.0, pytest.approx(3 + 10 / 3, abs=1e-5)]
    up = [(record["bytes"]["up"], record["bytes"]["up_whole"]) for record in diary.records]
    assert up == [(16, 8), (24, 12), (24, 12)]  # a number with its place takes twice as much as the number


@pytest.mark.parametrize("strategy", [None, FlowersFedAvg(fraction_evaluate=0.0)], ids=["own", "stock"])
def test_silent_since_reaches_clients_with_a_residual(strategy: Any) -> None:
    """Client 1's answers of rounds 2 and 3 are refused: that of round 4 begins with round 1's residual."""

    def answer(client: int, round: int, state: State) -> State:
        sent = eight_of_top_k(client, round, state)
        if client == 1 and round in (2, 3):
            sent["top-k.values"] = sent["top-k.values"] * torch.nan
        return sent

    for updates, since in ((UPDATES, 2), (None, None)):
        grid = SlowGrid(answer=answer if updates else plus_one)
        play(grid, rounds=5, strategy=strategy, updates=updates)
        silent_since = {key: value for key, value in grid.silent_since.items() if value is not None}
        assert silent_since == ({(3, 1): since, (4, 1): since} if updates else {})


def test_a_client_with_a_residual_waits_for_its_late_reply() -> None:
    """Client 2's answer is late when round 2 begins at 2.05 s; selected, it would send a residual twice."""
    grid = SlowGrid(seconds={(2, 1): 2.05}, answer=eight_of_top_k)
    diary = play(grid, rounds=3, holdout=0.5, updates=UPDATES, **LATE)
    assert [record["busy"] for record in diary.records] == [[], [2], []]
    assert [record["clients"] for record in diary.records] == [[0, 1], [0, 1, 2], [0, 1, 2]]
    assert set(grid.silent_since.values()) == {None}
