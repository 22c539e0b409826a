"""Large bodies at the gate, and the messages in them: who waits for room, whose reply, who confirms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node

from fedvision.deployment.server.api_gateway import ApiGateway
from fedvision.deployment.server.limits import Limits
from fedvision.deployment.transport.internals_superlink import (
    CONFIRM,
    MEDIA_TYPE,
    PUSH_MESSAGES,
    PUSH_OBJECT,
)
from tests.deployment.server.gateway_calls import (
    KEY,
    NORTH,
    OTHER,
    SOUTH,
    Flower,
    gate,
    send_request,
    signed,
)


def test_a_large_body_is_passed_on_in_parts_that_begin_with_a_whole_head() -> None:
    got: list[bytes] = []

    async def flower(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    parts = [bytes([number]) * 1000 for number in range(200)]
    guarded = ApiGateway(flower, lambda: {KEY: "north"}, Limits())
    assert send_request(guarded, PUSH_OBJECT, parts=parts)[0] == 200
    assert b"".join(got) == b"".join(parts)
    assert len(got[0]) >= 1 << 16
    assert len(got) > 100, "they are not joined"


def test_a_question_has_no_large_body() -> None:
    """Else a client that reads its answer slowly would hold room for a body that nobody needs."""
    flower = Flower()
    assert send_request(gate(flower), parts=[b"x" * 65537])[0] == 413
    assert send_request(gate(flower), PUSH_OBJECT, parts=[b"x" * 60_000])[0] == 200


class Sender:
    """A client that sends a large body in parts, as the test sets."""

    def __init__(self, guarded: ApiGateway, key: ec.EllipticCurvePrivateKey, size: int) -> None:
        self.parts: asyncio.Queue[bytes] = asyncio.Queue()
        self.status = 0
        self._left = size
        scope = {"type": "http", "method": "POST", "path": PUSH_OBJECT, "raw_path": PUSH_OBJECT.encode()}
        scope |= {"headers": [*signed(key), (b"content-length", str(size).encode())]}  # type: ignore[dict-item]
        self.done = asyncio.create_task(guarded(scope, self._receive, self._send))

    async def _receive(self) -> MutableMapping[str, Any]:
        part = await self.parts.get()
        self._left -= len(part)
        return {"type": "http.request", "body": part, "more_body": self._left > 0}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        self.status = message.get("status", self.status)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, and let those who see it go on."""
    while not holds():
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)


def test_a_body_that_rests_gives_way_to_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bodies fill the room and stop; the fifth gets in once they have been too slow while it waits."""
    monkeypatch.setattr("fedvision.deployment.server.api_gateway._TICK_S", 0.001)
    now = [0.0]
    limits = Limits(body_memory=4 * 2**20, key_bodies=4, body_rate=5e3)

    async def flower(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scene() -> None:
        keys = {KEY: "north", OTHER: "south"}
        guarded = ApiGateway(flower, lambda: keys, limits, lambda: now[0])
        slow = [Sender(guarded, SOUTH, 2**20) for _ in range(4)]
        for sender in slow:
            sender.parts.put_nowait(b"x" * 200_000)
        await until(lambda: all(sender.parts.empty() for sender in slow))
        now[0] = 20.0  # 10 kB/s: enough while nobody waits
        await asyncio.sleep(0.1)
        assert [sender.status for sender in slow] == [0] * 4
        good = Sender(guarded, NORTH, 2**20)
        good.parts.put_nowait(b"x" * 2**20)
        await until(lambda: len(guarded._budget._line) == 1)
        for sender in slow[:3]:
            sender.parts.put_nowait(b"x" * 100_000)
        await until(lambda: all(sender.parts.empty() for sender in slow))
        now[0] = 29.0
        await asyncio.sleep(0.1)
        assert good.status == 0
        now[0] = 30.5  # ten seconds of grace from the moment when somebody waits
        await until(lambda: good.status != 0)
        assert [sender.status for sender in [*slow, good]] == [0, 0, 0, 503, 200]
        for sender in slow:
            sender.done.cancel()
        await asyncio.gather(*(sender.done for sender in slow), return_exceptions=True)

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_who_waits_for_room_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fedvision.deployment.server.limits._LONG_WAIT_S", 0.05)

    async def scene() -> None:
        keys = {KEY: "north", OTHER: "south"}
        guarded = ApiGateway(Flower(), lambda: keys, Limits(body_memory=2 * 2**20))
        senders = [Sender(guarded, SOUTH, 2**20) for _ in range(2)]
        await until(lambda: guarded._budget._free == 0)
        senders.append(Sender(guarded, NORTH, 2**20))
        await until(lambda: bool(caplog.messages))
        for sender in senders:
            sender.done.cancel()
        await asyncio.gather(*(sender.done for sender in senders), return_exceptions=True)

    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        asyncio.run(asyncio.wait_for(scene(), 20))
    assert caplog.messages == [
        "north: has waited 10 s for room to send to the server; bodies under way: south 2"
    ]


def reply(source: int, *, node: int = 7, objects: ObjectTree | None = None) -> bytes:
    """Return a node's call that brings a reply."""
    message = Message(metadata=Metadata(src_node_id=source, message_id="r"))
    found = PushMessagesRequest(node=Node(node_id=node), messages_list=[message])
    found.message_object_trees.append(objects or tree("r", "a", "b"))
    return bytes(found.SerializeToString())


def tree(root: str, *children: str) -> ObjectTree:
    return ObjectTree(object_id=root, children=[ObjectTree(object_id=child) for child in children])


@pytest.mark.parametrize("kind", [MEDIA_TYPE, f"{MEDIA_TYPE.upper()}; charset=utf-8"])
def test_a_reply_in_another_clients_name_is_refused(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever way the call would take behind the gate, which hangs on its content type."""
    flower, headers = Flower(), [*signed(), (b"content-type", kind.encode())]
    forged, own = reply(8), reply(7)
    headers.append((b"content-length", str(len(forged)).encode()))
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        assert send_request(gate(flower), PUSH_MESSAGES, headers=headers, parts=[forged])[0] == 403
    assert caplog.messages == ["refused 192.0.2.1: a message in another client's name [north]"]
    assert flower.seen == []
    assert send_request(gate(flower), PUSH_MESSAGES, headers=headers, parts=[own])[0] == 200


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        (tree("r", *map(str, range(9))), "a reply of more than 8 objects"),
        (tree("other", "a"), "a reply whose objects are another message's"),
        (tree("known", "a", "c"), "a reply that has other objects than when it was sent before"),
    ],
    ids=["many", "another's", "other ones"],
)
def test_a_client_takes_no_more_of_the_disk_than_a_reply_needs(
    objects: ObjectTree, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each object may have 16 MiB; sent again with new ones each time, there would be no end of them."""
    flower, sent = Flower(), {"known": frozenset({"known", "a", "b"})}
    guarded = ApiGateway(flower, lambda: {KEY: "north"}, Limits(objects=8), announced=sent.get)
    name = objects.object_id if objects.object_id == "known" else "r"
    request = PushMessagesRequest.FromString(reply(7, objects=objects))
    request.messages_list[0].metadata.message_id = name
    body = request.SerializeToString()
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        assert send_request(guarded, PUSH_MESSAGES, parts=[body])[0] == 403
    assert caplog.messages == [f"refused 192.0.2.1: {why} [north]"]
    again = PushMessagesRequest.FromString(reply(7, objects=tree("known", "b", "a")))
    again.messages_list[0].metadata.message_id = "known"
    assert send_request(guarded, PUSH_MESSAGES, parts=[again.SerializeToString()])[0] == 200


@pytest.mark.parametrize(("owner", "status"), [(7, 200), (None, 200), (8, 403)])
def test_a_message_is_confirmed_by_its_receiver_alone(owner: int | None, status: int) -> None:
    body = ConfirmMessageReceivedRequest(node=Node(node_id=7), message_object_id="m").SerializeToString()
    guarded = ApiGateway(Flower(), lambda: {KEY: "north"}, Limits(), owner={"m": owner}.get)
    assert send_request(guarded, CONFIRM, parts=[body])[0] == status
