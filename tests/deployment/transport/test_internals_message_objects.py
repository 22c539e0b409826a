"""Contract tests of the non-public names for messages as objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedvision.deployment.transport import internals_message_objects, message_format
from fedvision.deployment.transport.internals_message_objects import (
    IncomingMessage,
    NotDeliveredYet,
    TensorObject,
)
from fedvision.errors import ProtocolError
from fedvision.flower import internals
from fedvision.flower.internals import TensorArray
from fedvision.updates.schema import TensorSpec


class Counting(message_format.TensorSource):
    """A source that notes how much was read at once."""

    largest = 0

    def views(self, start: int, stop: int) -> list[memoryview]:
        self.largest = max(self.largest, stop - start)
        return super().views(start, stop)


def sent(content: RecordDict, client: int = -1, ordered: bool = True) -> tuple[Message, Counting]:
    internals.identify(5)
    layout = message_format.describe(content, client)
    source = Counting(content, layout)
    tensors = internals_message_objects.pack_tensors(source, layout)
    packed = internals_message_objects.pack_message(layout, tensors, ordered=ordered)
    return Message(packed, 9, "train"), source


def big() -> RecordDict:
    """Return four and a half pieces, the first two equal: content-addressed pieces are sent once."""
    values = np.zeros(message_format.PIECE * 9 // 2 // 4, np.float32)
    values[message_format.PIECE // 2 :] = np.arange(len(values) - message_format.PIECE // 2)
    return RecordDict({"arrays": ArrayRecord({"w": TensorArray(torch.from_numpy(values))})})


def arrival(message: Message, drop: str = "") -> IncomingMessage:
    tree, objects = internals_message_objects.objects_of(message)
    reverse(tree)  # a SuperLink keeps no order among children
    contents = {name: thing.deflate() for name, thing in objects.items() if name != drop}

    def fetch(name: str) -> bytes:
        if name not in contents:
            raise NotDeliveredYet(name)
        return contents[name]

    return IncomingMessage(message, tree, fetch)


def reverse(tree: Any) -> None:
    children = list(tree.children)
    del tree.children[:]
    tree.children.extend(reversed(children))
    for child in tree.children:
        reverse(child)


@pytest.mark.parametrize("ordered", [True, False])
def test_objects_of_a_message_in_any_order(ordered: bool) -> None:
    """A message whose objects come in any order is there when all of them are."""
    message, _ = sent(big(), ordered=ordered)
    _, objects = internals_message_objects.objects_of(message)
    (layout,) = [name for name, thing in objects.items() if isinstance(thing, ConfigRecord)]
    pieces = {name for name, thing in objects.items() if isinstance(thing, TensorObject)}
    for name in objects.keys() - pieces - {layout}:
        incoming = arrival(message, drop=name)
        if ordered:
            assert incoming.open().size, "the layout came last: the rest is there, and is not requested"
            continue
        with pytest.raises(NotDeliveredYet):
            incoming.open()
    assert arrival(message).open().size


def test_what_another_client_of_flower_fetched_whole_is_the_same_content() -> None:
    message, _ = sent(big(), client=4)
    tree, objects = internals_message_objects.objects_of(message)
    contents = {name: thing.deflate() for name, thing in objects.items()}
    fetched = inflate_object_from_contents(tree.object_id, contents)
    assert isinstance(fetched, Message)
    layout, blob = internals_message_objects.contents(fetched.content)
    assert layout.client == 4
    found = message_format.unpack(layout, blob).array_records["arrays"]["w"].numpy()
    assert np.array_equal(found, big().array_records["arrays"]["w"].numpy())
    with pytest.raises(ProtocolError, match="is not packed as this version packs it"):
        internals_message_objects.contents(RecordDict())


def test_a_message_arrives_piece_by_piece_with_its_bits() -> None:
    content = big()
    message, source = sent(content, client=4)
    incoming = arrival(message)
    layout = incoming.open()
    assert layout.client == 4
    blob = bytearray(b"".join(incoming.read(layout)))
    back = message_format.unpack(layout, blob)
    assert np.array_equal(
        back.array_records["arrays"]["w"].numpy(), content.array_records["arrays"]["w"].numpy()
    )
    assert len(incoming.pieces) == 5
    assert len(set(incoming.pieces)) == 4
    assert source.largest == message_format.PIECE, "no more than a piece is ever joined"


def test_flower_itself_reads_the_message() -> None:
    message, source = sent(big())
    tree, objects = internals_message_objects.objects_of(message)
    contents = {name: thing.deflate() for name, thing in objects.items()}
    read = inflate_object_from_contents(tree.object_id, contents)
    assert isinstance(read, Message)
    (array,) = read.content.array_records["blob"].values()
    assert array.data == b"".join(source.views(0, source.size))


def test_pieces_go_first_and_the_layout_last() -> None:
    message, _ = sent(big())
    kinds = [type(thing) for thing in internals_message_objects.objects_of(message)[1].values()]
    assert kinds[0] is TensorObject
    assert kinds[-1] is ConfigRecord
    assert kinds == sorted(kinds, key=lambda kind: (kind is ConfigRecord) - (kind is TensorObject))


def test_a_message_without_tensors_has_a_layout_only() -> None:
    message, _ = sent(RecordDict({"config": ConfigRecord({"a": 1})}))
    incoming = arrival(message)
    layout = incoming.open()
    assert (layout.size, incoming.pieces, list(incoming.read(layout))) == (0, [], [])
    assert message_format.unpack(layout, bytearray()).config_records["config"]["a"] == 1


def test_undelivered_messages_are_requested_again() -> None:
    message, _ = sent(big())
    piece = next(iter(internals_message_objects.objects_of(message)[1]))
    incoming = arrival(message, drop=piece)
    layout = incoming.open()
    with pytest.raises(NotDeliveredYet):
        list(incoming.read(layout))


def lie_of_order(content: RecordDict) -> None:
    content.config_records["packed"]["order"] = [0]


def lie_of_place(content: RecordDict) -> None:
    content.config_records["packed"]["order"] = [0, -1, 7]


def lie_of_sign(content: RecordDict) -> None:
    content.config_records["packed"]["order"] = [0, 0, 1, 2, -1]


def lie_of_size(content: RecordDict) -> None:
    layout = message_format.MessageHeader(tensors={"arrays": (TensorSpec("w", "float32", (2**40,)),)})
    content.config_records["packed"]["layout"] = layout.to_text()


def lie_of_kind(content: RecordDict) -> None:
    del content["packed"]
    content["arrays"] = ArrayRecord({"w": Array(np.zeros(3))})


@pytest.mark.parametrize("lie", [lie_of_order, lie_of_place, lie_of_sign, lie_of_size, lie_of_kind])
def test_a_message_that_lies_is_refused_before_a_piece_is_fetched(lie: Callable[[RecordDict], None]) -> None:
    message, _ = sent(big())
    lie(message.content)
    incoming = arrival(message)
    with pytest.raises(ProtocolError):
        incoming.open()


def test_a_layout_that_protobuf_cannot_read_is_refused() -> None:
    """A SuperLink compares digest, kind and length of an object, and takes this one."""
    message, _ = sent(big())
    incoming = arrival(message)
    fetch, body = incoming._fetch, b"\xff" * 10

    def spoiled(name: str) -> bytes | memoryview:
        content = bytes(fetch(name))
        kind = f"{ConfigRecord.__qualname__}{HEAD_VALUE_DIVIDER}".encode()
        if not content.startswith(kind):
            return content
        return kind + f"{HEAD_VALUE_DIVIDER}{len(body)}".encode() + HEAD_BODY_DIVIDER + body

    incoming._fetch = spoiled
    with pytest.raises(ProtocolError, match="not packed"):
        incoming.open()


def test_a_piece_of_another_size_is_refused() -> None:
    message, _ = sent(big())
    layout = message_format.MessageHeader(
        tensors={"arrays": (TensorSpec("w", "uint8", (message_format.PIECE * 5 - 1,)),)}
    )
    message.content.config_records["packed"]["layout"] = layout.to_text()
    incoming = arrival(message)
    with pytest.raises(ProtocolError, match="a piece of the message has"):
        list(incoming.read(incoming.open()))


def test_an_error_gets_the_node_that_it_is_about() -> None:
    message, _ = sent(big())
    internals.set_message_id(message, "m")
    head = Message(Error(code=5, reason="gone"), reply_to=message)
    named = internals_message_objects.from_node(head, 77, Error(code=5, reason="it went offline"))
    assert (named.metadata.src_node_id, named.metadata.reply_to_message_id) == (77, "m")
    assert named.error.reason == "it went offline"


def with_constant(model: int, constant: int, seed: int) -> RecordDict:
    """Return a message of a model and of tensors that are the same in every message, by their numbers."""
    drawn = torch.randn(model, generator=torch.Generator().manual_seed(seed))
    fixed = torch.arange(constant, dtype=torch.float32)
    return RecordDict(
        {
            "constant.teacher": ArrayRecord({"t": TensorArray(fixed)}),
            "arrays": ArrayRecord({"w": TensorArray(drawn)}),
        }
    )


class Kept(dict[str, memoryview]):
    """Objects that a receiver has."""

    def put(self, name: str, content: memoryview) -> None:
        self[name] = memoryview(bytes(content))


def fetching(message: Message, fetched: list[str]) -> IncomingMessage:
    """Return a message that arrived; what is fetched of it is noted."""
    incoming = arrival(message)
    fetch = incoming._fetch

    def noted(name: str) -> bytes | memoryview:
        fetched.append(name)
        return fetch(name)

    incoming._fetch = noted
    return incoming


@pytest.mark.parametrize("constant", [100, message_format.PIECE // 4, message_format.PIECE // 2 + 5])
def test_constants_are_fetched_once(constant: int) -> None:
    kept, names = Kept(), list[set[str]]()
    for seed in (1, 2):
        content, fetched = with_constant(1000, constant, seed), list[str]()
        incoming = fetching(sent(content)[0], fetched)
        layout = incoming.open()
        blob = bytearray(b"".join(incoming.read(layout, kept)))
        back = message_format.unpack(layout, blob)
        for group, record in content.array_records.items():
            for name, array in record.items():
                assert np.array_equal(back.array_records[group][name].numpy(), array.numpy())
        names.append(set(fetched))
    pieces = -(-4 * constant // message_format.PIECE)
    assert len(names[0]) == pieces + 2, "the constants' pieces, the model's, the layout"
    assert len(names[1]) == 2, "the model's and the layout"
    assert len(kept) == pieces, "the model is not kept"


def test_whoever_keeps_nothing_fetches_all() -> None:
    fetched: list[str] = []
    incoming = fetching(sent(with_constant(10, 10, 1))[0], fetched)
    list(incoming.read(incoming.open()))
    assert len(fetched) == 3
