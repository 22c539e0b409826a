"""Selection: not the busy, not those set aside; pending replies of a restarted server."""

from __future__ import annotations

import json
import re

import pytest
import torch
from flwr.app import Error
from flwr.serverapp.strategy import FedAvg as StockFedAvg

from fedvision.config import ExperimentConfig, RoundConfig
from fedvision.errors import ConfigError
from fedvision.server.round_state import RoundState
from fedvision.types import State
from tests.flower.delayed_grid import SlowGrid, eight, play, plus_one


def test_nobody_is_free_and_the_round_waits_for_one() -> None:
    slow = {(client, round): 12.0 for client in range(2) for round in (1,)}
    grid = SlowGrid(clients=2, seconds=slow)
    diary = play(grid, rounds=2, deadline=10.0)
    # Round 2 begins with the answers of round 1, which it discards, and selects them again.
    assert [record["clients"] for record in diary.records] == [[], [0, 1]]
    assert [item["client"] for item in diary.records[1]["late"]] == [0, 1]
    assert grid.time == 13.0


def test_too_old_an_answer_is_discarded_and_was_named_before() -> None:
    grid = SlowGrid(seconds={(2, 1): 6.5})
    records = play(grid, rounds=8, deadline=2.0, late="next-round", max_staleness=2).records
    named = [(record["round"], item["reason"]) for record in records for item in record["late"]]
    assert named == [
        (4, "no answer in 2 rounds; it is of no use any more"),
        (6, "its answer came 5 rounds late and was discarded"),
    ]


def test_a_stock_strategy_is_not_left_waiting_for_nodes_that_are_busy() -> None:
    stock = StockFedAvg(min_train_nodes=3, min_available_nodes=3, fraction_evaluate=0.0)
    grid = SlowGrid(seconds={(2, 1): 12.0})
    diary = play(grid, rounds=2, strategy=stock, deadline=10.0)
    assert [record["clients"] for record in diary.records] == [[0, 1], [0, 1, 2]]


def test_a_client_refused_three_times_is_set_aside_named_and_left_alone() -> None:
    def answer(client: int, round: int, state: State) -> State:
        return {"w": torch.tensor([torch.nan if client == 1 else 1.0])}

    grid = SlowGrid(answer=answer)
    records = play(grid, rounds=5, holdout=0.5).records
    reason = {
        "client": 1,
        "stage": "training",
        "kind": "refused",
        "reason": "the tensor 'w' holds NaN or infinity",
    }
    assert [record["refused"] for record in records] == [[reason]] * 3 + [[]] * 2
    quarantined = [{"client": 1, "reason": "3 of its answers were refused"}]
    assert [record["set_aside"] for record in records] == [[], [], quarantined, [], []]
    assert [round for round, client in grid.requested if client == 1] == [1, 2, 3]
    assert sorted(records[4]["local"]["accuracy"]) == ["0", "2"], "it is not selected to measure either"


def test_errors_do_not_set_a_client_aside() -> None:
    def answer(client: int, round: int, state: State) -> State | Error:
        return Error(code=2, reason="out of memory") if client == 1 else plus_one(client, round, state)

    grid = SlowGrid(answer=answer)
    play(grid, rounds=5)
    assert [round for round, client in grid.requested if client == 1] == [1, 2, 3, 4, 5]


def test_an_absurd_change_is_refused_and_an_ordinary_large_one_is_not() -> None:
    sizes = {(1, 1): 999.0, (1, 2): 5.0e3, (1, 3): 9.0e8}

    def answer(client: int, round: int, state: State) -> State:
        return {"w": state["w"] + sizes.get((client, round), 3.0)}

    records = play(SlowGrid(clients=4, answer=answer), rounds=3).records
    # Round 1: a thousand times the model, which counts as 1. Then the usual change of 3 a thousand times.
    assert [record["refused"] for record in records[:2]] == [
        [],
        [
            {
                "client": 1,
                "stage": "training",
                "kind": "refused",
                "reason": "the norm of its change is 5e+03, above the bound of 3e+03",
            }
        ],
    ]
    assert records[2]["refused"][0]["client"] == 1
    unbounded = play(SlowGrid(clients=4, answer=answer), rounds=3, norm_limit=0.0).records
    assert [record["refused"] for record in unbounded] == [[], [], []]


def test_as_many_clients_train_as_configured() -> None:
    grid = SlowGrid(clients=20, seconds={(client, r): 1.0 + client for client in range(20) for r in range(9)})
    diary = play(grid, rounds=6, buffer=2, concurrency=5)
    requested = [len([1 for round, _ in grid.requested if round == number]) for number in range(1, 7)]
    assert [new + len(record["busy"]) for new, record in zip(requested, diary.records, strict=True)] == [
        5
    ] * 6
    assert requested[0] == 5
    assert len({client for _, client in grid.requested}) > 7, "they are drawn from all"


def test_a_restarted_server_requests_pending_replies() -> None:
    options = {"deadline": 2.0, "late": "next-round", "staleness": 1.0}
    whole = play(SlowGrid(seconds={(2, 1): 2.5}, answer=eight), rounds=2, **options)
    # The server dies after round 1; the client has its answer and sends it when it gets the task again.
    memory = RoundState(RoundConfig(**options))  # type: ignore[arg-type]
    first = play(SlowGrid(seconds={(2, 1): 2.5}, answer=eight), rounds=1, memory=memory, **options)
    saved = memory.snapshot(1)
    again = RoundState(RoundConfig(**options))  # type: ignore[arg-type]
    again.restore(saved[0], json.loads(json.dumps(saved[1])))
    grid = SlowGrid(seconds={(2, 1): 0.5}, answer=eight)
    second = play(grid, rounds=2, memory=again, first=2, state=first.states[0], **options)
    assert grid.requested[0] == (1, 2), "the same task, of the same round"
    assert second.records == whole.records[1:]
    assert second.values() == whole.values()[1:]


def test_a_client_that_is_gone_when_the_server_is_started_again_is_named() -> None:
    options = {"deadline": 2.0, "late": "next-round"}
    memory = RoundState(RoundConfig(**options))  # type: ignore[arg-type]
    first = play(SlowGrid(seconds={(2, 1): 2.5}), rounds=1, memory=memory, **options)
    again = RoundState(RoundConfig(**options))  # type: ignore[arg-type]
    again.restore(*memory.snapshot(1))
    second = play(SlowGrid(clients=2), rounds=2, memory=again, first=2, state=first.states[0], **options)
    reason = "the server was started again and the client was not there"
    assert second.records[0]["late"] == [{"client": 2, "requested": 1, "used": False, "reason": reason}]


def test_discarded_replies_are_not_requested_again() -> None:
    memory = RoundState(RoundConfig(deadline=2.0))
    play(SlowGrid(seconds={(2, 1): 2.5}), rounds=1, memory=memory, deadline=2.0)
    tensors, values = memory.snapshot(1)
    assert (tensors, sorted(values)) == ({}, ["refusals", "silent_since", "usual"])


def test_refusals_and_usual_norms_outlive_the_server() -> None:
    memory = RoundState(RoundConfig())
    memory.refusals, memory.usual = {7: 3, 2: 1}, [0.1, 0.3]
    again = RoundState(RoundConfig())
    again.restore({}, json.loads(json.dumps(memory.snapshot(4)[1])))
    assert (again.quarantined, again.refusals, again.usual) == ({7}, {7: 3, 2: 1}, [0.1, 0.3])


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"min_clients": 0}, "round.min_clients must be >= 1"),
        ({"deadline": -1.0}, "round.deadline must be >= 0"),
        ({"late": "never"}, "round.late must be one of 'discard', 'next-round'"),
        ({"buffer": 3, "min_clients": 4}, "round.min_clients must be <= round.buffer, which is 3"),
        ({"concurrency": 9}, "round.concurrency is 9 and needs a round.buffer"),
        ({"concurrency": 3, "buffer": 4}, "round.concurrency is 3 and needs a round.buffer"),
        ({"dead_line": 1.0}, "did you mean 'deadline'"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        ExperimentConfig.from_dict({"data": {"use": "digits"}, "round": table})
