"""One phase of a round: usable replies pass one at a time; silence, failure and misfits are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import Error, Message, RecordDict

from fedvision.errors import ConfigError, RunError
from fedvision.flower import codec, internals
from fedvision.flower.client_registry import UnknownClients
from fedvision.server.checks import check_state, check_strategy, no_progress_error
from fedvision.server.phase_result import PhaseResult, Undecoded
from fedvision.server.update_validator import UpdateValidator
from fedvision.training.loop import TrainResult
from fedvision.types import State
from tests.flower.test_strategy import Members, Nodes

STATE: State = {"w": torch.zeros(2)}
CLIENTS = {100: 0, 101: 1, 102: 2, 103: 3}


class Answering(Nodes):
    """A grid whose nodes answer by a function of the test; None is no reply."""

    def __init__(self, answer: Callable[[Message], Message | None]) -> None:
        self.answer = answer
        self.made = 0

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            self.made += 1
            if reply := self.answer(message):
                yield reply


def update(value: float = 1.0) -> RecordDict:
    state = {"w": torch.full((2,), value)}
    return codec.encode_update(TrainResult(state=state, examples=4, loss=0.5, steps=1))


def orders() -> list[Message]:
    internals.identify(1)
    content = RecordDict({"arrays": codec.encode_state(STATE)})
    return [Message(content, node, "train") for node in CLIENTS]


def answer(message: Message) -> Message | None:
    """Client 1 raises, client 2 is silent, client 3 sends NaN."""
    client = CLIENTS[message.metadata.dst_node_id]
    if client == 1:
        return Message(Error(code=2, reason="client 1, training: out of memory"), reply_to=message)
    if client == 2:
        return None
    return Message(update(float("nan") if client == 3 else 1.0), reply_to=message)


def test_what_cannot_be_used_is_named_and_the_rest_passes() -> None:
    exchange = PhaseResult(client_registry=Members(CLIENTS), stage="training", decoder=UpdateValidator(STATE))
    replies = list(exchange.send(Answering(answer), orders()))
    assert [reply.client for reply in replies] == [0]
    assert exchange.answered == [0]
    assert exchange.refused == [
        {"client": 1, "stage": "training", "kind": "failed", "reason": "out of memory"},
        {"client": 2, "stage": "training", "kind": "failed", "reason": "it did not answer"},
        {
            "client": 3,
            "stage": "training",
            "kind": "refused",
            "reason": "the tensor 'w' holds NaN or infinity",
        },
    ]
    # Four models of two floats went out; two came back, the refused one too.
    assert (exchange.down, exchange.up) == (32, 16)


def test_a_reply_passes_before_the_next_client_works() -> None:
    grid = Answering(lambda message: Message(update(), reply_to=message))
    replies = PhaseResult(
        client_registry=Members(CLIENTS), stage="training", decoder=UpdateValidator(STATE)
    ).send(grid, orders())
    next(replies)
    assert grid.made == 1


class Shuffled(Answering):
    """The same, but the replies come in another order."""

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        replies = list(super().send_and_receive(messages))
        yield from [replies[place] for place in (2, 0, 1)]


def test_replies_come_as_they_are_or_in_the_messages_order() -> None:
    def some(message: Message) -> Message | None:
        return None if CLIENTS[message.metadata.dst_node_id] == 1 else Message(update(), reply_to=message)

    def order(ordered: bool) -> list[int]:
        exchange = PhaseResult(
            client_registry=Members(CLIENTS), stage="training", decoder=UpdateValidator(STATE)
        )
        replies = list(exchange.send(Shuffled(some), orders(), ordered=ordered))
        assert exchange.answered == [0, 2, 3]
        assert [item["client"] for item in exchange.refused] == [1]
        return [reply.client for reply in replies]

    assert order(ordered=False) == [3, 0, 2]
    assert order(ordered=True) == [0, 2, 3]


def test_sums_are_only_taken_from_a_part_of_this_program() -> None:
    def folded(message: Message) -> Message:
        return Message(codec.encode_folded(4, 0.5, 8, 1.0, None), reply_to=message)

    stranger, own = (
        PhaseResult(
            client_registry=Members(CLIENTS),
            stage="training",
            decoder=UpdateValidator(STATE, accepts_sums=accepts_sums),
        )
        for accepts_sums in (False, True)
    )
    assert list(stranger.send(Answering(folded), orders())) == []
    assert "it lacks the record 'arrays'" in stranger.refused[0]["reason"]
    assert len(list(own.send(Answering(folded), orders()))) == 4
    assert (stranger.up, own.up) == (32, 32)


def test_a_client_whose_second_run_fails_has_not_answered() -> None:
    class Again(Answering):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
            yield from super().send_and_receive(messages)
            yield Message(Error(code=2, reason="client 1, training: gone"), reply_to=messages[1])

    grid = Again(lambda message: Message(codec.encode_folded(4, 0.5, 8, 1.0, None), reply_to=message))
    exchange = PhaseResult(
        client_registry=Members(CLIENTS),
        stage="training",
        decoder=UpdateValidator(STATE, accepts_sums=True),
    )
    list(exchange.send(grid, orders()))
    assert exchange.answered == [0, 2, 3]
    assert exchange.refused == [{"client": 1, "stage": "training", "kind": "failed", "reason": "gone"}]
    assert sorted(exchange.norms) == [0, 2, 3]


def test_nothing_is_sent_without_selected_clients() -> None:
    grid = Answering(answer)
    assert (
        list(
            PhaseResult(client_registry=UnknownClients(), stage="training", decoder=Undecoded()).send(
                grid, []
            )
        )
        == []
    )
    assert grid.made == 0


def test_a_result_is_brought_to_the_models_types() -> None:
    before = {"w": torch.zeros(2, dtype=torch.float16)}
    after = check_state(1, {"w": torch.ones(2, dtype=torch.float64)}, before)
    assert after["w"].dtype is torch.float16


@pytest.mark.parametrize(
    ("combined", "sentence"),
    [
        ({}, "differ in the tensor 'w'"),
        ({"w": torch.zeros(2), "x": torch.zeros(1)}, "differ in the tensor 'x'"),
        ({"w": torch.zeros(3)}, r"made 'w' \[3\], not \[2\]"),
        ({"w": torch.tensor([1.0, float("inf")])}, "holds NaN or infinity in 'w'"),
    ],
)
def test_a_result_that_is_no_model_ends_the_run(combined: State, sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        check_state(7, combined, STATE)


def test_a_minimum_above_the_federation_is_refused() -> None:
    class Stock:
        min_available_nodes, min_train_nodes, min_evaluate_nodes = 2, 5, 2

    with pytest.raises(ConfigError, match=r"strategy\.min_train_nodes is 5 but there are 3 clients"):
        check_strategy(Stock(), 3)  # type: ignore[arg-type]
    check_strategy(Stock(), 5)  # type: ignore[arg-type]


def test_a_run_that_cannot_go_on_has_a_reason() -> None:
    refused = [
        {
            "client": 3,
            "stage": "training",
            "kind": "refused",
            "reason": "the tensor 'w' holds NaN or infinity",
        }
    ]
    assert "client 3" in no_progress_error(2, refused)
    assert "lower training.lr" in no_progress_error(2, refused)
    assert no_progress_error(1, []) == "no client succeeded in 1 round in a row"
