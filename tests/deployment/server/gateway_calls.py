"""Calls of the gate as an application, with a stand-in for Flower behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedvision.deployment.server.api_gateway import ApiGateway
from fedvision.deployment.server.limits import Limits
from fedvision.deployment.transport.internals_superlink import (
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


def gate(flower: Flower, **limits: Any) -> ApiGateway:
    return ApiGateway(flower, lambda: {KEY: "north"}, Limits(**limits))
