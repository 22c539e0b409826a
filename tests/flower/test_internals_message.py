"""Contract tests: messages made by their parts are those that Flower's constructors make."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedvision.flower import internals, internals_message


@pytest.fixture
def original() -> Message:
    internals.identify(run_id=12)
    message = Message(
        RecordDict({"config": ConfigRecord({"a": 1})}), 7, "train", ttl=50.0, group_id="g", dst_task_id=4
    )
    internals.set_message_id(message, "m1")
    return message


def fields(message: Message, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    parts = {name: value for name, value in vars(message).items() if name != "_metadata"}
    remaining = {name: value for name, value in vars(message.metadata).items() if name not in without}
    return {**parts, **remaining}


def test_an_answer_is_flowers_reply(original: Message) -> None:
    content = RecordDict()
    expected, made = Message(content, reply_to=original), internals_message.answer(content, original)
    times = ("_created_at", "_ttl")
    assert fields(made, without=times) == fields(expected, without=times)
    assert made.content is content
    for name in times:
        assert vars(made.metadata)[name] == pytest.approx(vars(expected.metadata)[name], abs=20.0)
    # It ends when the message it answers would have ended.
    ends = made.metadata.created_at + made.metadata.ttl
    assert ends == pytest.approx(original.metadata.created_at + 50.0, abs=1e-3)


def test_an_answer_to_an_answer_goes_back(original: Message) -> None:
    back = internals_message.answer(RecordDict(), internals_message.answer(RecordDict(), original))
    assert (back.metadata.src_node_id, back.metadata.dst_node_id) == (internals.SERVER_NODE, 7)
    assert (back.metadata.src_task_id, back.metadata.dst_task_id) == (1, 4)


def test_a_message_to_another_node_is_a_new_one_with_the_same_content(original: Message) -> None:
    other = internals_message.addressed(original, 9)
    expected = Message(original.content, 9, "train", ttl=50.0, group_id="g", dst_task_id=4)
    assert fields(other, without=("_created_at",)) == fields(expected, without=("_created_at",))
    assert other.content is original.content
    internals.set_message_id(other, "m2")
    assert (original.metadata.dst_node_id, original.metadata.message_id) == (7, "m1")


def test_values_are_what_a_record_holds(original: Message) -> None:
    config = internals_message.values(original.content)["config"]
    assert internals_message.values(config) == {"a": 1}
