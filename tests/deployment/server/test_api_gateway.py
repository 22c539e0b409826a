"""The gate as an application: what it passes on, byte for byte, and what never reaches Flower."""

from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64encode
from collections.abc import Callable, MutableMapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from hypothesis import given
from hypothesis import strategies as st

from fedvision.deployment.server.api_gateway import ApiGateway, fingerprint
from fedvision.deployment.server.limits import Limits
from fedvision.deployment.transport.internals_bundle import FLEET
from fedvision.deployment.transport.internals_superlink import (
    CONFIRM,
    MEDIA_TYPE,
    NOT_ACTIVATED,
    PUBLIC_KEY_HEADER,
    PUSH_MESSAGES,
    PUSH_OBJECT,
    SIGNATURE_HEADER,
    TIME_HEADER,
    fleet_paths,
    signed_headers,
)

NORTH, SOUTH = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
KEY, OTHER = (public_key_to_bytes(key.public_key()) for key in (NORTH, SOUTH))
PULL = "/v1/fleet/pull-messages"


def signed(key: ec.EllipticCurvePrivateKey = NORTH) -> list[tuple[bytes, bytes]]:
    """Return a call's headers as ASGI gives them."""
    return [(name.lower().encode(), value.encode()) for name, value in signed_headers(key).items()]


class Flower:
    """Stands in for Flower's application: notes what it is given."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert not message["more_body"]
        self.seen.append((scope["path"], message["body"]))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def send_request(
    gate: ApiGateway,
    path: str = PULL,
    *,
    method: str = "POST",
    raw: bytes | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
    parts: list[bytes] | None = None,
    peer: str = "192.0.2.1",
) -> tuple[int, dict[str, Any]]:
    """Make one request and return status and the answer's JSON."""
    own = [*signed(), (b"transfer-encoding", b"chunked")] if headers is None else headers
    body = [b"x"] if parts is None else parts
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        if not waiting:
            await asyncio.sleep(10)
        return waiting.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": own, "client": (peer, 1)}
    scope["raw_path"] = path.encode() if raw is None else raw
    asyncio.run(gate(scope, receive, send))
    content = sent[1]["body"]
    return sent[0]["status"], json.loads(content) if content[:1] == b"{" else {}


BEAT = "/v1/fleet/send-node-heartbeat"


@pytest.mark.parametrize(
    ("path", "seconds_header", "status", "again"),
    [
        (BEAT, b"40.0", 200, [(7, 40.0)]),
        (BEAT, b"40.0", 401, []),
        (BEAT, b"nan", 200, []),
        (BEAT, b"-1", 200, []),
        (BEAT, b"0", 200, [(7, 0.0)]),
        (BEAT, b"3600", 200, []),
        (BEAT, None, 200, []),
        (PULL, b"40.0", 200, []),
    ],
)
def test_an_accepted_heartbeat_requests_lost_messages(
    path: str, seconds_header: bytes | None, status: int, again: list[tuple[int, float]]
) -> None:
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.node_pb2 import Node

    activated: list[tuple[int, float]] = []

    def redeliver(node: int, seconds: float) -> int:
        activated.append((node, seconds))
        return 1

    flower = Flower(status)
    guarded = ApiGateway(flower, lambda: {KEY: "north"}, Limits(), redeliver=redeliver)
    body = SendNodeHeartbeatRequest(node=Node(node_id=7), heartbeat_interval=25).SerializeToString()
    headers = signed()
    headers += [(b"x-fedvision-empty-for", seconds_header)] if seconds_header else []
    assert send_request(guarded, path, headers=headers, parts=[body])[0] == status
    assert flower.seen == [(path, body)]
    assert activated == again


def gate(flower: Flower, **limits: Any) -> ApiGateway:
    return ApiGateway(flower, lambda: {KEY: "north"}, Limits(**limits))


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_a_known_clients_body_arrives_whole(parts: list[bytes]) -> None:
    flower = Flower()
    assert send_request(gate(flower), parts=parts)[0] == 200
    assert flower.seen == [(PULL, b"".join(parts))]


@given(st.text(max_size=30), st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE"]))
def test_no_other_path_gets_through(path: str, method: str) -> None:
    flower = Flower()
    assert send_request(gate(flower), "/" + path, method=method)[0] == 403
    assert flower.seen == []


def test_health_passes_without_a_key() -> None:
    flower = Flower()
    assert send_request(gate(flower), "/health", method="GET", headers=[])[0] == 200
    assert flower.seen == [("/health", b"")]


@pytest.mark.parametrize("path", sorted(fleet_paths() | {FLEET}))
def test_a_path_that_came_in_encoded_is_another_path(path: str) -> None:
    flower = Flower()
    assert send_request(gate(flower), path, raw=path.replace("f", "%66", 1).encode())[0] == 403
    assert send_request(gate(flower), path, method="GET")[0] == 403
    assert flower.seen == []
    assert send_request(gate(flower), path)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(PUBLIC_KEY_HEADER, b"")],
        [(PUBLIC_KEY_HEADER, b"!!")],
        [(PUBLIC_KEY_HEADER, b64encode(b"another"))],
        # Two headers: whichever Flower would take, it is not for us to guess.
        [
            (PUBLIC_KEY_HEADER, b64encode(KEY)),
            (PUBLIC_KEY_HEADER, b64encode(b"x")),
        ],
    ],
)
def test_without_one_known_key_nothing_gets_through(headers: list[tuple[bytes, bytes]]) -> None:
    flower = Flower()
    status, answer = send_request(gate(flower), headers=headers)
    assert (status, answer["code"]) == (401, NOT_ACTIVATED)
    # Flower's client prints the sentence of a refused activation, and stops on 401 in any other call.
    assert send_request(gate(flower), "/v1/fleet/activate-node", headers=headers)[0] == 412
    assert flower.seen == []


def test_a_key_is_known_from_the_moment_that_it_is() -> None:
    known: dict[bytes, str] = {}
    watched = ApiGateway(Flower(), lambda: known, Limits())
    assert send_request(watched)[0] == 401
    known[KEY] = "north"
    assert send_request(watched)[0] == 200
    known.clear()
    assert send_request(watched)[0] == 401


def test_a_body_may_be_as_large_as_the_limit_and_no_larger() -> None:
    flower = Flower()
    assert send_request(gate(flower, body=10), parts=[b"12345", b"67890"])[0] == 200
    assert send_request(gate(flower, body=10), parts=[b"12345", b"678901"])[0] == 413
    declared = [*signed(), (b"content-length", b"11")]
    assert send_request(gate(flower, body=10), headers=declared, parts=[])[0] == 413
    assert len(flower.seen) == 1


def test_a_body_that_drips_is_refused_though_it_never_stops() -> None:
    clock = iter(range(1000))
    slow = ApiGateway(
        Flower(), lambda: {KEY: "north"}, Limits(header_seconds=3, body_rate=1), lambda: float(next(clock))
    )
    status, answer = send_request(slow, parts=[b""] * 20)
    assert status == 408
    assert answer["detail"] == "a body slower than 1 bytes a second"


def test_a_large_body_may_take_the_time_that_its_size_gives_it() -> None:
    clock, flower = iter(range(1000)), Flower()
    limits = Limits(header_seconds=3, body_rate=1)
    patient = ApiGateway(flower, lambda: {KEY: "north"}, limits, lambda: float(next(clock)))
    assert send_request(patient, parts=[b"x"] * 20)[0] == 200
    assert flower.seen == [(PULL, b"x" * 20)]


def test_half_a_body_reaches_nobody() -> None:
    flower, sent = Flower(), []
    coming = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> MutableMapping[str, Any]:
        return coming.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("status", 0))

    scope = {"type": "http", "method": "POST", "path": PULL, "raw_path": PULL.encode(), "headers": signed()}
    asyncio.run(gate(flower)(scope, receive, send))
    assert (sent, flower.seen) == ([400, 0], [])


@pytest.mark.parametrize("header", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")])
def test_a_question_for_health_with_a_body_is_refused(header: tuple[bytes, bytes]) -> None:
    flower = Flower()
    assert send_request(gate(flower), "/health", method="GET", headers=[header])[0] == 413
    assert flower.seen == []


def test_more_requests_than_allowed_are_put_off_for_each_peer_alone() -> None:
    flower = Flower()
    busy = gate(flower, requests=0.001, burst=2)
    assert [send_request(busy, "/health", method="GET", headers=[])[0] for _ in range(3)] == [200, 200, 503]
    assert send_request(busy, "/health", method="GET", headers=[], peer="192.0.2.2")[0] == 200


def test_a_websocket_gets_no_answer() -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError

    asyncio.run(gate(Flower())({"type": "websocket", "path": PULL, "client": ("192.0.2.1", 1)}, never, never))


def test_no_key_has_no_fingerprint() -> None:
    assert fingerprint(b"-----BEGIN PUBLIC KEY-----\nthis one\n") == "no key"


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


@pytest.mark.parametrize(
    "headers",
    [
        [(PUBLIC_KEY_HEADER, b64encode(KEY))],
        [(PUBLIC_KEY_HEADER, b64encode(KEY)), *signed(SOUTH)[1:]],
        [*signed()[:1], (TIME_HEADER, b"2020-01-01T00:00:00+00:00"), *signed()[2:]],
        [*signed()[:1], (TIME_HEADER, b"2020-01-01"), *signed()[2:]],
        [*signed()[:2], (SIGNATURE_HEADER, b"AAAA")],
        [*signed()[:2], (SIGNATURE_HEADER, b"!!")],
        [*signed(), signed()[2]],
    ],
    ids=["none", "anothers", "old", "no time zone", "short", "no base64", "two"],
)
def test_a_known_key_without_its_signature_has_no_body_read(headers: list[tuple[bytes, bytes]]) -> None:
    """A public key is no secret: nothing is read, and no room is taken, for who cannot sign with it."""
    flower, sent = Flower(), []

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("the body is read")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("status", 0))

    scope = {"type": "http", "method": "POST", "path": PUSH_OBJECT, "raw_path": PUSH_OBJECT.encode()}
    scope["headers"] = [*headers, (b"content-length", b"16000000")]  # type: ignore[assignment]
    asyncio.run(gate(flower)(scope, receive, send))
    assert (sent, flower.seen) == ([401, 0], [])


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


def reply(source: int, *, node: int = 7) -> bytes:
    """Return a node's call that brings a reply."""
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.proto.message_pb2 import Message, Metadata
    from flwr.proto.node_pb2 import Node

    messages = [Message(metadata=Metadata(src_node_id=node)), Message(metadata=Metadata(src_node_id=source))]
    return PushMessagesRequest(node=Node(node_id=node), messages_list=messages).SerializeToString()


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


@pytest.mark.parametrize(("owner", "status"), [(7, 200), (None, 200), (8, 403)])
def test_a_message_is_confirmed_by_its_receiver_alone(owner: int | None, status: int) -> None:
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from flwr.proto.node_pb2 import Node

    body = ConfirmMessageReceivedRequest(node=Node(node_id=7), message_object_id="m").SerializeToString()
    guarded = ApiGateway(Flower(), lambda: {KEY: "north"}, Limits(), owner={"m": owner}.get)
    assert send_request(guarded, CONFIRM, parts=[body])[0] == status


def test_a_removed_client_gets_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    guarded = ApiGateway(Flower(), dict, Limits(), removed=lambda: {KEY: "north"})
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        status, error = send_request(guarded)
    assert (status, error["code"]) == (401, NOT_ACTIVATED)
    assert error["detail"].startswith("This client was removed from the federation")
    assert caplog.messages[0].endswith("[north]")
    assert send_request(guarded, headers=signed(SOUTH))[1]["detail"].startswith("The server does not know")
