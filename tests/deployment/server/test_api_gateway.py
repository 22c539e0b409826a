"""The gate as an application: what it passes on, byte for byte, and what never reaches Flower."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import MutableMapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.deployment.server.api_gateway import ApiGateway
from fedvision.deployment.server.keyring import fingerprint
from fedvision.deployment.server.limits import Limits
from fedvision.deployment.transport.internals_bundle import FLEET
from fedvision.deployment.transport.internals_superlink import (
    NOT_ACTIVATED,
    PUBLIC_KEY_HEADER,
    PUSH_OBJECT,
    SIGNATURE_HEADER,
    TIME_HEADER,
    fleet_paths,
)
from tests.deployment.server.gateway_calls import (
    KEY,
    PULL,
    SOUTH,
    Flower,
    gate,
    send_request,
    signed,
)

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


def test_a_removed_client_gets_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    guarded = ApiGateway(Flower(), dict, Limits(), removed=lambda: {KEY: "north"})
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        status, error = send_request(guarded)
    assert (status, error["code"]) == (401, NOT_ACTIVATED)
    assert error["detail"].startswith("This client was removed from the federation")
    assert caplog.messages[0].endswith("[north]")
    assert send_request(guarded, headers=signed(SOUTH))[1]["detail"].startswith("The server does not know")
