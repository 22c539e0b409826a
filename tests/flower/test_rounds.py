"""Quorum, deadline, late answers, buffer: made-up clients that take their time, by a made-up clock."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import torch
from flwr.app import Error
from flwr.serverapp.strategy import FedAvg as StockFedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.config import ExperimentConfig, RoundConfig
from fedvision.errors import ConfigError, RunError
from fedvision.flower.rounds import Rounds
from fedvision.flower.strategy import FlowerStrategy
from fedvision.strategies.base import RoundStrategy
from fedvision.strategies.robust import Median
from fedvision.strategies.scaffold import Scaffold
from fedvision.strategies.server_opt import FedAvgM
from fedvision.types import State, Update
from tests.flower.slow import SlowGrid, play, plus_one


def test_without_a_deadline_everybody_is_waited_for() -> None:
    grid = SlowGrid(seconds={(2, 1): 1e6})
    diary = play(grid, rounds=2)
    assert [record["clients"] for record in diary.records] == [[0, 1, 2], [0, 1, 2]]
    assert all(r["late"] == r["busy"] == r["refused"] == r["set_aside"] == [] for r in diary.records)
    assert diary.values() == [1.0, 2.0]


def test_who_misses_the_deadline_is_named_left_in_peace_and_discarded() -> None:
    grid = SlowGrid(seconds={(2, 1): 34.0})
    first, second, third, fourth = play(grid, rounds=4, deadline=30.0).records
    missed = {"client": 2, "stage": "training", "reason": "no answer by the deadline of 30 s"}
    assert (first["clients"], first["refused"]) == ([0, 1], [missed])
    # Busy in rounds 2 and 3, which take a second each; its answer comes in round 4's stead at 34 s.
    assert [record["busy"] for record in (first, second, third, fourth)] == [[], [2], [2], [2]]
    assert (2, 2) not in grid.asked
    assert second["clients"] == [0, 1]
    assert grid.time == 33.0


def test_a_late_answer_is_discarded_on_the_record_and_its_client_is_asked_again() -> None:
    grid = SlowGrid(seconds={(2, 1): 31.5})
    records = play(grid, rounds=4, deadline=30.0).records
    reason = "its answer came 2 rounds late and was discarded"
    late = {"client": 2, "asked": 1, "used": False, "reason": reason}
    assert [record["late"] for record in records] == [[], [], [late], []]
    assert [record["busy"] for record in records] == [[], [2], [2], []]
    assert records[3]["clients"] == [0, 1, 2]


def eight(client: int, round: int, state: State) -> State:
    """Client 2 adds 8, the others add 1."""
    return {"w": state["w"] + (8.0 if client == 2 else 1.0)}


def test_a_late_answer_is_used_in_the_next_round_with_its_weight() -> None:
    grid = SlowGrid(seconds={(2, 1): 2.5, (0, 2): 2.0, (1, 2): 2.0}, answer=eight)
    diary = play(grid, rounds=3, deadline=2.0, late="next-round", staleness=1.0)
    first, second, third = diary.records
    assert (first["clients"], second["clients"], third["clients"]) == ([0, 1], [0, 1, 2], [0, 1, 2])
    # Asked with w = 0 it added 8; a round late that counts half: w = 1 becomes 5 for it, 2 for the others.
    assert second["late"] == [
        {"client": 2, "asked": 1, "used": True, "weight": 0.5, "loss": 0.5, "examples": 4}
    ]
    assert second["examples"] == 12
    assert diary.values() == [1.0, 3.0, pytest.approx(3 + 10 / 3, abs=1e-5)]


def test_a_client_whose_late_answer_waits_at_the_rounds_start_is_asked_too() -> None:
    # It comes at 2.05 s, while round 1 is measured: in round 2 it counts once late and once new.
    grid = SlowGrid(seconds={(2, 1): 2.05}, answer=eight)
    diary = play(grid, rounds=2, deadline=2.0, late="next-round", staleness=1.0, holdout=0.5)
    second = diary.records[1]
    assert (second["busy"], second["clients"]) == ([], [0, 1, 2, 2])
    assert diary.values() == [1.0, pytest.approx((2 + 2 + 9 + 5) / 4)]
    assert len(grid.asked) == len(set(grid.asked)) == 6


def test_after_the_quorum_the_rest_has_so_many_seconds() -> None:
    grid = SlowGrid(seconds={(1, 1): 5.0, (2, 1): 6.0})
    (record,) = play(grid, rounds=1, deadline=30.0, min_clients=1, wait_after_quorum=4.5).records
    assert record["clients"] == [0, 1]
    assert record["refused"][0]["reason"] == "no answer within 4.5 s after the quorum of 1"
    assert grid.time == 5.5


def test_the_quorum_does_not_stretch_the_deadline() -> None:
    grid = SlowGrid(seconds={(1, 1): 9.0, (2, 1): 11.0})
    (record,) = play(grid, rounds=1, deadline=10.0, min_clients=2, wait_after_quorum=4.5).records
    assert record["refused"][0]["reason"] == "no answer by the deadline of 10 s"
    assert grid.time == 10.0


@pytest.mark.parametrize("strategy", [FedAvgM(), Median()], ids=lambda one: type(one).__name__)
def test_a_round_without_its_quorum_changes_neither_model_nor_strategy(strategy: RoundStrategy) -> None:
    def answer(client: int, round: int, state: State) -> State | Error:
        if client and round == 1:
            return Error(code=2, reason=f"client {client}, training: no")
        return {"w": torch.full((1,), 8.0)}

    def remembered() -> dict[str, object]:
        return {key: value for key, value in vars(strategy).items() if key == "direction"}

    before = remembered()
    grid, flower = SlowGrid(answer=answer), FlowerStrategy(strategy, seed=0)
    with pytest.raises(RunError, match="client 1: no"):
        play(grid, rounds=1, strategy=flower, min_clients=2)
    assert remembered() == before
    diary = play(SlowGrid(answer=answer), rounds=2, strategy=flower, min_clients=2)
    record = diary.records[0]
    assert (record["changed"], record["clients"], diary.values()) == (False, [], [0.0, 8.0])
    assert record["refused"] == [
        {"client": 1, "stage": "training", "reason": "no"},
        {"client": 2, "stage": "training", "reason": "no"},
        {"client": 0, "stage": "training", "reason": "the round had 1 of the 2 answers that it needs"},
    ]


def test_too_few_late_answers_are_on_the_record_too() -> None:
    grid = SlowGrid(seconds={(2, 1): 2.5, (0, 2): 3.0, (1, 2): 3.0})
    records = play(grid, rounds=3, deadline=2.0, late="next-round", min_clients=2).records
    assert [record["changed"] for record in records] == [True, False, True]
    reason = "the round had 1 of the 2 answers that it needs"
    (late,) = records[1]["late"]
    assert (late["client"], late["used"], late["reason"]) == (2, False, reason)
    # The two that were busy come in round 3 and are used beside the one that was free.
    assert [item["used"] for item in records[2]["late"]] == [True, True]


def test_a_late_failure_is_on_the_record_and_frees_its_client() -> None:
    def answer(client: int, round: int, state: State) -> State | Error:
        gone = Error(code=5, reason="it went offline before it answered")
        return gone if (client, round) == (2, 1) else plus_one(client, round, state)

    grid = SlowGrid(seconds={(2, 1): 2.5}, answer=answer)
    second, third = play(grid, rounds=3, deadline=2.0, late="next-round").records[1:]
    assert second["late"] == [
        {"client": 2, "asked": 1, "used": False, "reason": "it went offline before it answered"}
    ]
    assert (second["clients"], third["clients"]) == ([0, 1], [0, 1, 2])


def test_what_is_measured_while_a_client_trains_neither_waits_for_it_nor_loses_its_answer() -> None:
    grid = SlowGrid(seconds={(2, 1): 2.05})
    first, second = play(grid, rounds=2, deadline=2.0, late="next-round", holdout=0.5).records
    assert sorted(first["local"]["accuracy"]) == ["0", "1"]
    assert [item["used"] for item in second["late"]] == [True]
    assert sorted(second["local"]["accuracy"]) == ["0", "1", "2"]


def test_nobody_is_free_and_the_round_waits_for_one() -> None:
    slow = {(client, round): 12.0 for client in range(2) for round in (1,)}
    grid = SlowGrid(clients=2, seconds=slow)
    diary = play(grid, rounds=2, deadline=10.0)
    # Round 2 begins with the answers of round 1, which it discards, and asks again.
    assert [record["clients"] for record in diary.records] == [[], [0, 1]]
    assert [item["client"] for item in diary.records[1]["late"]] == [0, 1]
    assert grid.time == 13.0


def test_answers_that_come_twice_count_once() -> None:
    grid = SlowGrid(answer=eight)
    grid.twice = {2}
    diary = play(grid, rounds=2)
    assert [record["clients"] for record in diary.records] == [[0, 1, 2]] * 2
    assert diary.values()[0] == pytest.approx(10 / 3, abs=1e-5)


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


def test_late_answers_reach_strategies_that_see_every_update_after_the_others() -> None:
    seen: list[tuple[int, int, float]] = []

    class Looking(Median):
        def combine(self, state: State, updates: Iterator[Update]) -> State:
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
    # In round 2 client 2 answers first, then client 1, then client 0 with what it was asked in round 1.
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


def test_a_client_refused_three_times_is_set_aside_named_and_left_alone() -> None:
    def answer(client: int, round: int, state: State) -> State:
        return {"w": torch.tensor([torch.nan if client == 1 else 1.0])}

    grid = SlowGrid(answer=answer)
    records = play(grid, rounds=5, holdout=0.5).records
    reason = {"client": 1, "stage": "training", "reason": "the tensor 'w' holds NaN or infinity"}
    assert [record["refused"] for record in records] == [[reason]] * 3 + [[]] * 2
    aside = [{"client": 1, "reason": "3 of its answers were refused"}]
    assert [record["set_aside"] for record in records] == [[], [], aside, [], []]
    assert [round for round, client in grid.asked if client == 1] == [1, 2, 3]
    assert sorted(records[4]["local"]["accuracy"]) == ["0", "2"], "it is not asked to measure either"


def test_errors_do_not_set_a_client_aside() -> None:
    def answer(client: int, round: int, state: State) -> State | Error:
        return Error(code=2, reason="out of memory") if client == 1 else plus_one(client, round, state)

    grid = SlowGrid(answer=answer)
    play(grid, rounds=5)
    assert [round for round, client in grid.asked if client == 1] == [1, 2, 3, 4, 5]


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
                "reason": "the norm of its change is 5e+03, above the bound of 3e+03",
            }
        ],
    ]
    assert records[2]["refused"][0]["client"] == 1
    unbounded = play(SlowGrid(clients=4, answer=answer), rounds=3, norm_limit=0.0).records
    assert [record["refused"] for record in unbounded] == [[], [], []]


def test_a_run_gives_up_after_the_failed_rounds_that_it_was_told() -> None:
    def answer(client: int, round: int, state: State) -> State | Error:
        return Error(code=2, reason="no disk") if round > 1 else plus_one(client, round, state)

    with pytest.raises(
        RunError, match="no client succeeded in 2 rounds in a row; client 0: no disk"
    ) as caught:
        play(SlowGrid(answer=answer), rounds=9, failed_rounds=2)
    assert [record["round"] for record in caught.value.diary.records] == [1, 2]  # type: ignore[attr-defined]


def test_a_buffer_ends_a_round_and_others_stay_at_work() -> None:
    grid = SlowGrid(clients=4, seconds={(1, 1): 2.0, (2, 1): 2.5, (3, 1): 4.5})
    diary = play(grid, rounds=3, buffer=2, staleness=1.0)
    first, second, third = diary.records
    assert (first["clients"], first["refused"], first["busy"]) == ([0, 1], [], [])
    # At 2 s clients 0 and 1 begin anew. Client 2 comes at 2.5 s, late, and client 0 at 3 s.
    assert (second["clients"], second["busy"]) == ([0, 2], [2, 3])
    # Client 1 came at 3 s, too, a moment after the buffer was full: it counts now, and is asked anew.
    assert (third["clients"], third["busy"]) == ([0, 1], [3])
    late = [(item["client"], item["asked"], item["weight"]) for item in second["late"] + third["late"]]
    assert late == [(2, 1, 0.5), (1, 2, 0.5)]
    assert diary.values() == [1.0, (2 + 1.5) / 2, (2.75 + 2.25) / 2]
    assert grid.time == 4.0
    assert all(record["refused"] == [] for record in diary.records), "nobody is late who is at work"


def test_so_many_clients_are_at_work_as_the_experiment_says() -> None:
    grid = SlowGrid(clients=20, seconds={(client, r): 1.0 + client for client in range(20) for r in range(9)})
    diary = play(grid, rounds=6, buffer=2, concurrency=5)
    asked = [len([1 for round, _ in grid.asked if round == number]) for number in range(1, 7)]
    assert [new + len(record["busy"]) for new, record in zip(asked, diary.records, strict=True)] == [5] * 6
    assert asked[0] == 5
    assert len({client for _, client in grid.asked}) > 7, "they are drawn from all"


@settings(max_examples=40, deadline=None)
@given(
    seconds=st.dictionaries(
        st.tuples(st.integers(0, 3), st.integers(1, 6)), st.sampled_from([0.5, 1.0, 1.5, 2.5, 4.0, 9.0, 1e9])
    ),
    late=st.sampled_from(["discard", "next-round"]),
    deadline=st.sampled_from([1.25, 2.0, 5.0]),
    quorum=st.integers(1, 3),
    buffer=st.sampled_from([0, 0, 3]),
    twice=st.sets(st.integers(0, 3)),
)
def test_whatever_clients_do_each_training_counts_once_or_is_accounted_for(
    seconds: dict[tuple[int, int], float],
    late: str,
    deadline: float,
    quorum: int,
    buffer: int,
    twice: set[int],
) -> None:
    grid = SlowGrid(clients=4, seconds=seconds)
    grid.twice = twice
    table = {"late": late, "deadline": deadline, "min_clients": quorum, "buffer": buffer}
    try:
        diary = play(grid, rounds=6, failed_rounds=100, **table)
    except RunError as error:
        diary = error.diary  # type: ignore[attr-defined]
    assert len(grid.asked) == len(set(grid.asked)), "nobody is asked twice in a round"
    fates: list[tuple[int, int]] = []
    for record in diary.records:
        stale = [(item["asked"], item["client"]) for item in record["late"] if item["used"]]
        new = record["clients"][: len(record["clients"]) - len(stale)]
        fates += [(record["round"], client) for client in new] + stale
        assert (late == "next-round" or buffer) or not stale
        assert record["changed"] == (len(record["clients"]) >= quorum)
        busy = set(record["busy"])
        assert not busy & {client for round, client in grid.asked if round == record["round"]}
        missed = {item["client"] for item in record["refused"]}
        known = busy | missed | set(new)
        assert buffer or known == set(range(4)), "everybody answered, was missed, or is busy"
    assert len(fates) == len(set(fates)), "no training counts twice"
    assert set(fates) <= set(grid.asked)


def test_a_server_that_is_started_again_asks_for_what_it_was_owed() -> None:
    options = {"deadline": 2.0, "late": "next-round", "staleness": 1.0}
    whole = play(SlowGrid(seconds={(2, 1): 2.5}, answer=eight), rounds=2, **options)
    # The server dies after round 1; the client has its answer and sends it when it is asked again.
    memory = Rounds(RoundConfig(**options))  # type: ignore[arg-type]
    first = play(SlowGrid(seconds={(2, 1): 2.5}, answer=eight), rounds=1, memory=memory, **options)
    saved = memory.snapshot(1)
    again = Rounds(RoundConfig(**options))  # type: ignore[arg-type]
    again.restore(saved[0], json.loads(json.dumps(saved[1])))
    grid = SlowGrid(seconds={(2, 1): 0.5}, answer=eight)
    second = play(grid, rounds=2, memory=again, first=2, state=first.states[0], **options)
    assert grid.asked[0] == (1, 2), "the same task, of the same round"
    assert second.records == whole.records[1:]
    assert second.values() == whole.values()[1:]


def test_a_client_that_is_gone_when_the_server_is_started_again_is_named() -> None:
    options = {"deadline": 2.0, "late": "next-round"}
    memory = Rounds(RoundConfig(**options))  # type: ignore[arg-type]
    first = play(SlowGrid(seconds={(2, 1): 2.5}), rounds=1, memory=memory, **options)
    again = Rounds(RoundConfig(**options))  # type: ignore[arg-type]
    again.restore(*memory.snapshot(1))
    second = play(SlowGrid(clients=2), rounds=2, memory=again, first=2, state=first.states[0], **options)
    reason = "the server was started again and the client was not there"
    assert second.records[0]["late"] == [{"client": 2, "asked": 1, "used": False, "reason": reason}]


def test_what_is_discarded_anyway_is_not_asked_for_again() -> None:
    memory = Rounds(RoundConfig(deadline=2.0))
    play(SlowGrid(seconds={(2, 1): 2.5}), rounds=1, memory=memory, deadline=2.0)
    tensors, values = memory.snapshot(1)
    assert (tensors, sorted(values)) == ({}, ["refusals", "usual"])


def test_refusals_and_usual_norms_outlive_the_server() -> None:
    memory = Rounds(RoundConfig())
    memory.refusals, memory.usual = {7: 3, 2: 1}, [0.1, 0.3]
    again = Rounds(RoundConfig())
    again.restore({}, json.loads(json.dumps(memory.snapshot(4)[1])))
    assert (again.aside, again.refusals, again.usual) == ({7}, {7: 3, 2: 1}, [0.1, 0.3])


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
