"""The gate as an application: what it passes on, byte for byte, and what never reaches Flower."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import MutableMapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.deploy.gate import FleetGate, fingerprint
from fedvision.deploy.limits import Limits
from fedvision.link.internals_bundle import FLEET
from fedvision.link.internals_superlink import NOT_ACTIVATED, PUBLIC_KEY_HEADER, fleet_paths

KEY = b"-----BEGIN PUBLIC KEY-----\nthis one\n"
PULL = "/v1/fleet/pull-messages"


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


def ask(
    gate: FleetGate,
    path: str = PULL,
    *,
    method: str = "POST",
    raw: bytes | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
    parts: list[bytes] | None = None,
    peer: str = "192.0.2.1",
) -> tuple[int, dict[str, Any]]:
    """Make one request and return status and the answer's JSON."""
    own = [(PUBLIC_KEY_HEADER, b64encode(KEY))] if headers is None else headers
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
    ("path", "said", "status", "again"),
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
def test_a_heartbeat_that_flower_finds_good_asks_for_what_got_lost(
    path: str, said: bytes | None, status: int, again: list[tuple[int, float]]
) -> None:
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.node_pb2 import Node

    asked: list[tuple[int, float]] = []

    def give_again(node: int, seconds: float) -> int:
        asked.append((node, seconds))
        return 1

    flower = Flower(status)
    guarded = FleetGate(flower, lambda: {KEY}, Limits(), give_again=give_again)
    body = SendNodeHeartbeatRequest(node=Node(node_id=7), heartbeat_interval=25).SerializeToString()
    headers = [(PUBLIC_KEY_HEADER, b64encode(KEY))]
    headers += [(b"x-fedvision-empty-for", said)] if said else []
    assert ask(guarded, path, headers=headers, parts=[body])[0] == status
    assert flower.seen == [(path, body)]
    assert asked == again


def gate(flower: Flower, **limits: Any) -> FleetGate:
    return FleetGate(flower, lambda: {KEY}, Limits(**limits))


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_a_known_clients_body_arrives_whole(parts: list[bytes]) -> None:
    flower = Flower()
    assert ask(gate(flower), parts=parts)[0] == 200
    assert flower.seen == [(PULL, b"".join(parts))]


@given(st.text(max_size=30), st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE"]))
def test_no_other_path_gets_through(path: str, method: str) -> None:
    flower = Flower()
    assert ask(gate(flower), "/" + path, method=method)[0] == 403
    assert flower.seen == []


def test_health_passes_without_a_key() -> None:
    flower = Flower()
    assert ask(gate(flower), "/health", method="GET", headers=[])[0] == 200
    assert flower.seen == [("/health", b"")]


@pytest.mark.parametrize("path", sorted(fleet_paths() | {FLEET}))
def test_a_path_that_came_in_encoded_is_another_path(path: str) -> None:
    flower = Flower()
    assert ask(gate(flower), path, raw=path.replace("f", "%66", 1).encode())[0] == 403
    assert ask(gate(flower), path, method="GET")[0] == 403
    assert flower.seen == []
    assert ask(gate(flower), path)[0] == 200


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
    status, answer = ask(gate(flower), headers=headers)
    assert (status, answer["code"]) == (401, NOT_ACTIVATED)
    # Flower's client prints the sentence of a refused activation, and stops on 401 in any other call.
    assert ask(gate(flower), "/v1/fleet/activate-node", headers=headers)[0] == 412
    assert flower.seen == []


def test_a_key_is_known_from_the_moment_that_it_is() -> None:
    known: set[bytes] = set()
    watched = FleetGate(Flower(), lambda: known, Limits())
    assert ask(watched)[0] == 401
    known.add(KEY)
    assert ask(watched)[0] == 200
    known.clear()
    assert ask(watched)[0] == 401


def test_a_body_may_be_as_large_as_the_limit_and_no_larger() -> None:
    flower = Flower()
    assert ask(gate(flower, body=10), parts=[b"12345", b"67890"])[0] == 200
    assert ask(gate(flower, body=10), parts=[b"12345", b"678901"])[0] == 413
    declared = [(PUBLIC_KEY_HEADER, b64encode(KEY)), (b"content-length", b"11")]
    assert ask(gate(flower, body=10), headers=declared, parts=[])[0] == 413
    assert len(flower.seen) == 1


def test_a_body_that_drips_is_refused_though_it_never_stops() -> None:
    clock = iter(range(1000))
    slow = FleetGate(
        Flower(), lambda: {KEY}, Limits(header_seconds=3, body_rate=1), lambda: float(next(clock))
    )
    status, answer = ask(slow, parts=[b""] * 20)
    assert status == 408
    assert answer["detail"] == "a body slower than 1 bytes a second"


def test_a_large_body_may_take_the_time_that_its_size_gives_it() -> None:
    clock, flower = iter(range(1000)), Flower()
    limits = Limits(header_seconds=3, body_rate=1)
    patient = FleetGate(flower, lambda: {KEY}, limits, lambda: float(next(clock)))
    assert ask(patient, parts=[b"x"] * 20)[0] == 200
    assert flower.seen == [(PULL, b"x" * 20)]


def test_half_a_body_reaches_nobody() -> None:
    flower, sent = Flower(), []
    coming = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> MutableMapping[str, Any]:
        return coming.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("status", 0))

    headers = [(PUBLIC_KEY_HEADER, b64encode(KEY))]
    scope = {"type": "http", "method": "POST", "path": PULL, "raw_path": PULL.encode(), "headers": headers}
    asyncio.run(gate(flower)(scope, receive, send))
    assert (sent, flower.seen) == ([400, 0], [])


@pytest.mark.parametrize("header", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")])
def test_a_question_for_health_with_a_body_is_refused(header: tuple[bytes, bytes]) -> None:
    flower = Flower()
    assert ask(gate(flower), "/health", method="GET", headers=[header])[0] == 413
    assert flower.seen == []


def test_more_requests_than_allowed_are_put_off_for_each_peer_alone() -> None:
    flower = Flower()
    busy = gate(flower, requests=0.001, burst=2)
    assert [ask(busy, "/health", method="GET")[0] for _ in range(3)] == [200, 200, 503]
    assert ask(busy, "/health", method="GET", peer="192.0.2.2")[0] == 200


def test_a_websocket_gets_no_answer() -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError

    asyncio.run(gate(Flower())({"type": "websocket", "path": PULL, "client": ("192.0.2.1", 1)}, never, never))


def test_no_key_has_no_fingerprint() -> None:
    assert fingerprint(KEY) == "no key"


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
    guarded = FleetGate(flower, lambda: {KEY}, Limits())
    assert ask(guarded, parts=parts)[0] == 200
    assert b"".join(got) == b"".join(parts)
    assert len(got[0]) >= 1 << 16
    assert len(got) > 100, "they are not joined"
