"""Replies that come after their round: which call yields them, and which clients are busy until then."""

from __future__ import annotations

import math

from flwr.app import ConfigRecord, Message, RecordDict

from fedvision.deployment.server.superlink_grid import SuperLinkGrid
from fedvision.server.pending_messages import AsyncGrid
from tests.deployment.server.superlink_links import (
    FakeLink,
    grid,
    messages_to,
    packed,
    update,
)


def watched(carrier: SuperLinkGrid, most: int = 9, kind: str = "") -> list[tuple[int, Message]]:
    """Return who was selected and the reply, until nothing is owed or so many are there."""
    found: list[tuple[int, Message]] = []
    for message, reply in carrier.watch(lambda: -math.inf if len(found) == most else math.inf, kind):
        found.append((message.metadata.dst_node_id, reply))
    return found


def test_what_is_late_is_owed_and_comes_with_a_later_round(link: FakeLink) -> None:
    link.replies, link.held = {10: [update(1.0), update(3.0)], 20: [update(2.0)]}, {20}
    carrier = grid(link)
    assert isinstance(carrier, AsyncGrid)
    carrier.post(messages_to([10, 20]))
    assert [node for node, _ in watched(carrier, 1)] == [10]
    assert carrier.ready() == []
    carrier.post(messages_to([10]))
    link.held = set()
    carrier.wait(math.inf)
    assert len(carrier.ready()) == 2
    found = dict(watched(carrier))
    values = {node: float(r.content.array_records["arrays"]["w"].numpy()[0, 0]) for node, r in found.items()}
    assert values == {10: 3.0, 20: 2.0}
    assert watched(carrier) == [], "nothing is owed any more"


def test_who_stops_watching_loses_nothing(link: FakeLink) -> None:
    link.replies = {10: [update(1.0)], 20: [update(2.0)]}
    carrier = grid(link)
    carrier.post(messages_to([10, 20]))
    message, _ = next(carrier.watch(lambda: float("inf")))
    rest = watched(carrier)
    assert {message.metadata.dst_node_id, *(node for node, _ in rest)} == {10, 20}


def test_a_measurement_does_not_take_a_late_training_away(link: FakeLink) -> None:
    link.replies = {10: [update(1.0)], 20: [packed(RecordDict({"m": ConfigRecord({"x": 1})}))]}
    carrier = grid(link)
    carrier.post(messages_to([10]))
    carrier.post([Message(RecordDict({"config": ConfigRecord({"r": 1})}), 20, "evaluate")])
    assert [node for node, _ in watched(carrier, 1, "evaluate")] == [20]
    assert [node for node, _ in watched(carrier, 1)] == [10]


def test_a_question_beside_it_takes_no_answer_that_is_owed(link: FakeLink) -> None:
    link.replies, link.held = {10: [update(1.0)], 20: [update(2.0)]}, {10}
    carrier = grid(link)
    carrier.post(messages_to([10]))
    assert [r.metadata.src_node_id for r in carrier.send_and_receive(messages_to([20]))] == [20]
    link.held = set()
    assert [node for node, _ in watched(carrier)] == [10]


def test_whom_the_superlink_does_not_take_a_message_for_is_named(link: FakeLink) -> None:
    link.replies, link.gone = {20: [update(2.0)]}, {10}
    carrier = grid(link)
    carrier.post(messages_to([10, 20]))
    found = dict(watched(carrier))
    assert found[10].error.reason == "it went offline before its message was sent"
    assert found[20].has_content()
