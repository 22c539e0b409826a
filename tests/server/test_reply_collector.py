"""Quorum, deadline, late answers, buffer: made-up clients that take their time, by a made-up clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import Error, Message
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.algorithms.base import RoundStrategy
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.robust import Median
from fedvision.algorithms.server_optimizers import FedAvgM
from fedvision.errors import RunError
from fedvision.flower import codec
from fedvision.flower.strategy import FlowerStrategy
from fedvision.types import State
from tests.flower.delayed_grid import SlowGrid, eight, play, plus_one


def test_without_a_deadline_everybody_is_waited_for() -> None:
    grid = SlowGrid(seconds={(2, 1): 1e6})
    diary = play(grid, rounds=2)
    assert [record["clients"] for record in diary.records] == [[0, 1, 2], [0, 1, 2]]
    assert all(r["late"] == r["busy"] == r["refused"] == r["set_aside"] == [] for r in diary.records)
    assert diary.values() == [1.0, 2.0]


def test_who_misses_the_deadline_is_named_left_in_peace_and_discarded() -> None:
    grid = SlowGrid(seconds={(2, 1): 34.0})
    first, second, third, fourth = play(grid, rounds=4, deadline=30.0).records
    missed = {
        "client": 2,
        "stage": "training",
        "kind": "failed",
        "reason": "no answer by the deadline of 30 s",
    }
    assert (first["clients"], first["refused"]) == ([0, 1], [missed])
    # Busy in rounds 2 and 3, which take a second each; its answer comes in round 4's stead at 34 s.
    assert [record["busy"] for record in (first, second, third, fourth)] == [[], [2], [2], [2]]
    assert (2, 2) not in grid.requested
    assert second["clients"] == [0, 1]
    assert grid.time == 33.0


def test_discarded_late_reply() -> None:
    """A late reply is recorded as discarded and its client selected again."""
    grid = SlowGrid(seconds={(2, 1): 31.5})
    records = play(grid, rounds=4, deadline=30.0).records
    reason = "its answer came 2 rounds late and was discarded"
    late = {"client": 2, "requested": 1, "used": False, "reason": reason}
    assert [record["late"] for record in records] == [[], [], [late], []]
    assert [record["busy"] for record in records] == [[], [2], [2], []]
    assert records[3]["clients"] == [0, 1, 2]


def test_a_late_answer_is_used_in_the_next_round_with_its_weight() -> None:
    grid = SlowGrid(seconds={(2, 1): 2.5, (0, 2): 2.0, (1, 2): 2.0}, answer=eight)
    diary = play(grid, rounds=3, deadline=2.0, late="next-round", staleness=1.0)
    first, second, third = diary.records
    assert (first["clients"], second["clients"], third["clients"]) == ([0, 1], [0, 1, 2], [0, 1, 2])
    # Sent w = 0 it added 8; a round late that counts half: w = 1 becomes 5 for it, 2 for the others.
    assert second["late"] == [
        {"client": 2, "requested": 1, "used": True, "weight": 0.5, "loss": 0.5, "examples": 4}
    ]
    assert second["examples"] == 12
    assert diary.values() == [1.0, 3.0, pytest.approx(3 + 10 / 3, abs=1e-5)]


def test_a_client_with_a_late_reply_at_the_rounds_start_is_selected() -> None:
    # It comes at 2.05 s, while round 1 is measured: in round 2 it counts once late and once new.
    grid = SlowGrid(seconds={(2, 1): 2.05}, answer=eight)
    diary = play(grid, rounds=2, deadline=2.0, late="next-round", staleness=1.0, holdout=0.5)
    second = diary.records[1]
    assert (second["busy"], second["clients"]) == ([], [0, 1, 2, 2])
    assert diary.values() == [1.0, pytest.approx((2 + 2 + 9 + 5) / 4)]
    assert len(grid.requested) == len(set(grid.requested)) == 6


@pytest.mark.parametrize("strategy", [FedAvg(), Median()], ids=lambda one: type(one).__name__)
def test_losses_of_late_and_new_reply(strategy: RoundStrategy) -> None:
    """A client's late and its new reply are recorded with their own losses."""

    class Telling(SlowGrid):
        def reply(self, message: Message) -> Message:
            reply = super().reply(message)
            if message.metadata.message_type == "train":
                round = codec.round_of(message.content)
                reply.content["metrics"]["train_loss"] = 10.0 / round
                reply.content["metrics"]["num-examples"] = round
            return reply

    # As above; the late reply rests on one image with loss 10, each of round 2 on two with loss 5.
    grid = Telling(seconds={(2, 1): 2.05})
    flower = FlowerStrategy(strategy, seed=0)
    diary = play(grid, rounds=2, strategy=flower, deadline=2.0, late="next-round", holdout=0.5)
    second = diary.records[1]
    assert (second["clients"], second["examples"]) == ([0, 1, 2, 2], 7)
    assert second["train_loss"] == pytest.approx((6 * 5.0 + 10.0) / 7)
    assert second["client_loss"] == {"0": 5.0, "1": 5.0, "2": 5.0}
    assert [(item["loss"], item["examples"]) for item in second["late"]] == [(10.0, 1)]


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
        {"client": 1, "stage": "training", "kind": "failed", "reason": "no"},
        {"client": 2, "stage": "training", "kind": "failed", "reason": "no"},
        {
            "client": 0,
            "stage": "training",
            "kind": "unused",
            "reason": "the round had 1 of the 2 answers that it needs",
        },
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
        {"client": 2, "requested": 1, "used": False, "reason": "it went offline before it answered"}
    ]
    assert (second["clients"], third["clients"]) == ([0, 1], [0, 1, 2])


def test_measurement_while_a_client_trains() -> None:
    """What is measured while a client trains neither waits for it nor loses its answer."""
    grid = SlowGrid(seconds={(2, 1): 2.05})
    first, second = play(grid, rounds=2, deadline=2.0, late="next-round", holdout=0.5).records
    assert sorted(first["local"]["accuracy"]) == ["0", "1"]
    assert [item["used"] for item in second["late"]] == [True]
    assert sorted(second["local"]["accuracy"]) == ["0", "1", "2"]


def test_late_reply_without_its_measurement() -> None:
    """A late answer is used without its measurement, which is of an older model."""
    grid = SlowGrid(seconds={(2, 2): 2.5, (0, 3): 2.0, (1, 3): 2.0})
    stock = FlowersFedAvg(fraction_evaluate=0.0)  # it breaks off where a reply has more than its model
    options: dict[str, Any] = {"deadline": 2.0, "late": "next-round", "holdout": 0.5, "with_training": True}
    first, second, third, _ = play(grid, rounds=4, strategy=stock, **options).records
    assert (first["local"], first.get("received")) == (None, None)
    assert (sorted(second["clients"]), sorted(second["received"]["accuracy"])) == ([0, 1], ["0", "1"])
    assert [(item["client"], item["used"]) for item in third["late"]] == [(2, True)]
    assert (sorted(third["clients"]), third["changed"]) == ([0, 1, 2], True)
    assert (third["received"]["round"], sorted(third["received"]["accuracy"])) == (2, ["0", "1"])


def test_a_late_and_a_new_reply_in_one_round_count_the_new_one() -> None:
    class Busy(SlowGrid):
        def ready(self) -> list[Message]:
            self.time += 0.1  # the server had something else to do
            return super().ready()

    grid = Busy(seconds={(2, 2): 2.05})
    options: dict[str, Any] = {"deadline": 2.0, "late": "next-round", "holdout": 0.5, "with_training": True}
    third = play(grid, rounds=4, strategy=FlowerStrategy(Median(), seed=0), **options).records[2]
    assert third["clients"] == [0, 1, 2, 2]
    assert third["received"]["confusion"] == [[9, 0], [0, 9]], "three clients, each by its measurement"


def test_answers_that_are_too_few_bring_no_measurement() -> None:
    grid = SlowGrid(seconds={(2, 2): 9.0})
    second = play(grid, rounds=3, deadline=2.0, min_clients=3, holdout=0.5, with_training=True).records[1]
    assert (second["changed"], second["received"]) == (False, None)


def test_a_client_that_does_not_measure_is_named_and_its_training_counts() -> None:
    class Forgetful(SlowGrid):
        def reply(self, message: Message) -> Message:
            reply = super().reply(message)
            if self.clients[message.metadata.dst_node_id] == 1 and not reply.has_error():
                codec.unload(reply.content)
            return reply

    second = play(Forgetful(), rounds=2, holdout=0.5, with_training=True).records[1]
    assert second["clients"] == [0, 1, 2]
    assert sorted(second["received"]["accuracy"]) == ["0", "2"]
    reason = "its answer brought no measurement"
    assert second["refused"] == [{"client": 1, "stage": "evaluation", "kind": "refused", "reason": reason}]


@pytest.mark.parametrize("with_training", [False, True])
def test_a_measurement_that_is_none_is_refused_by_name_and_the_run_goes_on(with_training: bool) -> None:
    class Lying(SlowGrid):
        def reply(self, message: Message) -> Message:
            reply, own = super().reply(message), message.metadata.message_type == "evaluate"
            if self.clients[message.metadata.dst_node_id] == 1 and not reply.has_error():
                found = reply.content if own else codec.unload(reply.content)
                if found is not None:
                    found.pop("counts")
                if found is not None and not own:
                    codec.carry(reply.content, found)
            return reply

    first, second = play(Lying(), rounds=2, holdout=0.5, with_training=with_training).records
    found = second["received"] if with_training else first["local"]
    assert sorted(found["accuracy"]) == sorted(second["local"]["accuracy"]) == ["0", "2"]
    assert [(item["client"], item["stage"]) for item in second["refused"]] == [(1, "evaluation")] * (
        1 + with_training
    )
    assert (second["clients"], second["changed"]) == ([0, 1, 2], True)


def test_answers_that_come_twice_count_once() -> None:
    grid = SlowGrid(answer=eight)
    grid.twice = {2}
    diary = play(grid, rounds=2)
    assert [record["clients"] for record in diary.records] == [[0, 1, 2]] * 2
    assert diary.values()[0] == pytest.approx(10 / 3, abs=1e-5)


def test_a_run_ends_after_the_configured_failed_rounds() -> None:
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
    # Client 1 came at 3 s, too, a moment after the buffer was full: it counts now, and is selected anew.
    assert (third["clients"], third["busy"]) == ([0, 1], [3])
    late = [(item["client"], item["requested"], item["weight"]) for item in second["late"] + third["late"]]
    assert late == [(2, 1, 0.5), (1, 2, 0.5)]
    assert diary.values() == [1.0, (2 + 1.5) / 2, (2.75 + 2.25) / 2]
    assert grid.time == 4.0
    assert all(record["refused"] == [] for record in diary.records), "nobody is late who is at work"


@pytest.mark.slow
@settings(max_examples=40)
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
    assert len(grid.requested) == len(set(grid.requested)), "no client is selected twice in a round"
    fates: list[tuple[int, int]] = []
    for record in diary.records:
        stale = [(item["requested"], item["client"]) for item in record["late"] if item["used"]]
        new = record["clients"][: len(record["clients"]) - len(stale)]
        fates += [(record["round"], client) for client in new] + stale
        assert (late == "next-round" or buffer) or not stale
        assert record["changed"] == (len(record["clients"]) >= quorum)
        busy = set(record["busy"])
        assert not busy & {client for round, client in grid.requested if round == record["round"]}
        missed = {item["client"] for item in record["refused"]}
        known = busy | missed | set(new)
        assert buffer or known == set(range(4)), "everybody answered, was missed, or is busy"
    assert len(fates) == len(set(fates)), "no training counts twice"
    assert set(fates) <= set(grid.requested)


def test_quorum_waits_for_late_replies() -> None:
    """A round short of its quorum waits for late answers until its deadline."""
    grid = SlowGrid(seconds={(2, 1): 12.0})
    first, second = play(grid, rounds=2, deadline=10.0, late="next-round", min_clients=3).records
    assert (first["changed"], second["changed"]) == (False, True)
    # Clients 0 and 1 answer at 11 s; the third answer that the round needs is that of 12 s.
    assert (second["clients"], grid.time) == ([0, 1, 2], 12.0)
