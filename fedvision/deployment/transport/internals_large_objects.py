"""Large objects past Flower's client (flwr 1.41 and 1.42), contract-tested.

* ``PullObjectRequest``, ``PushObjectRequest``: the same calls as ``FleetHttpClient`` makes.

Flower's client copies what it fetches five times, 64 KiB at a time, and what it sends three times: a model of
45 MB took a client a fifth of a second of the processor's time so, and two clients on one machine hold each
other up. Here what comes is read to where it stays, and what goes is sent from where it lies.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedvision.deployment.transport.internals_bundle import before_field, split
from fedvision.deployment.transport.internals_message_objects import LinkDown, TensorObject, fetched, refusal
from fedvision.deployment.transport.internals_superlink import MEDIA_TYPE, signed_headers
from fedvision.deployment.transport.message_format import PIECE
from fedvision.deployment.transport.proxies import proxy_for

_TIMEOUT_S = 30.0
_IDLE_S = 15.0
"""Seconds after which a connection is not used again: a SuperLink closes it after 30."""
_MOST = PIECE + (1 << 16)
_CONTENT = "object_content"
_PULL, _PUSH = "/v1/fleet/pull-object", "/v1/fleet/push-object"


class BulkLink:
    """A connection for objects of megabytes, opened when it is needed.

    Args:
        base: ``https://HOST:PORT``, or ``http://``.
        key: The client's private key.
        context: TLS settings; None sends plain text.
    """

    def __init__(self, base: str, key: EllipticCurvePrivateKey, context: ssl.SSLContext | None) -> None:
        place = urlsplit(base)
        self._host, self._port = place.hostname or "", place.port
        self._key, self._context = key, context
        self.direct = proxy_for(place.scheme, self._host) is None
        """Whether there is no proxy in between, which is left to Flower's client."""
        self._open: HTTPConnection | None = None
        self._used = float("-inf")

    def pull(self, request: PullObjectRequest) -> memoryview:
        """Fetch an object.

        Raises:
            NotDeliveredYet: Its sender has not delivered it.
            RunEnded: The SuperLink forgot it.
            LinkDown: The SuperLink cannot be reached, or what answers is none.
            LinkRefused: It answered no.
        """
        body = self._call(_PULL, [memoryview(request.SerializeToString())])
        try:
            facts, (content, *_) = split([body], PullObjectResponse, _CONTENT)
        except ValueError:  # there is no content, which the facts explain
            facts, content = bytes(body), memoryview(b"")
        try:
            fetched(PullObjectResponse.FromString(facts), request.object_id)
        except DecodeError as error:
            raise LinkDown(f"what answers is no SuperLink ({error})") from error
        if not content:
            raise LinkDown("the SuperLink sent an object without its content")
        return content

    def push(self, request: PushObjectRequest, piece: TensorObject) -> bool:
        """Send a piece, the content of a request without one, and return whether it was still waited for.

        Raises:
            LinkDown, LinkRefused, RunEnded: As ``pull``.
        """
        before = before_field(request, _CONTENT, piece.size)
        response = self._call(_PUSH, [memoryview(before), *piece.views()])
        try:
            return bool(PushObjectResponse.FromString(bytes(response)).stored)
        except DecodeError as error:
            raise LinkDown(f"what answers is no SuperLink ({error})") from error

    def _call(self, path: str, parts: Sequence[memoryview]) -> memoryview:
        try:
            connection = self._connection()
            connection.putrequest("POST", path)
            size = str(sum(map(len, parts)))
            headers = signed_headers(self._key)
            for name, value in {**headers, "content-type": MEDIA_TYPE, "content-length": size}.items():
                connection.putheader(name, value)
            connection.endheaders()
            for part in parts:
                connection.sock.sendall(part)
            answer = connection.getresponse()
            body = _read(answer)
        except (OSError, HTTPException, ValueError) as error:
            self.close()
            raise LinkDown(str(error) or type(error).__name__) from error
        self._used = time.monotonic()
        if answer.will_close:
            self.close()
        if answer.status != 200:
            raise refusal(answer.status, bytes(body).decode(errors="replace"))
        return body

    def _connection(self) -> HTTPConnection:
        if time.monotonic() - self._used > _IDLE_S:
            self.close()
        if self._open is None:
            more: dict[str, Any] = {"context": self._context} if self._context else {}
            kind = HTTPSConnection if self._context else HTTPConnection
            self._open = kind(self._host, self._port, timeout=_TIMEOUT_S, **more)
        return self._open

    def close(self) -> None:
        """Close the connection; it is opened again when it is needed."""
        if self._open is not None:
            self._open.close()
            self._open = None


def check_encoding() -> None:
    """Compare what is put together and taken apart here by hand with what protobuf makes of it.

    Raises:
        ValueError: They differ.
    """
    content = bytes(range(256)) * 2
    answer = PullObjectResponse(object_found=True, object_available=True, object_content=content)
    facts, parts = split([answer.SerializeToString()], PullObjectResponse, _CONTENT)
    sample = PushObjectRequest(run_id=1, object_id="a" * 64, session_id="s")
    parsed = PushObjectRequest.FromString(before_field(sample, _CONTENT, len(content)) + content)
    sample.object_content = content
    if b"".join(parts) != content or PullObjectResponse.FromString(facts).object_content or parsed != sample:
        raise ValueError("large objects are written differently")


def _read(answer: HTTPResponse) -> memoryview:
    """Return an answer's body in memory of its own.

    Raises:
        ValueError: It is larger than any object, or ends early.
    """
    size = answer.length
    if size is None or size > _MOST:
        raise ValueError("an answer of another size than any object's")
    body = np.empty(size, np.uint8).data
    position = 0
    while position < size:
        read = answer.readinto(body[position:])
        if not read:
            raise ValueError("the answer ended early")
        position += read
    answer.read()  # its end: the connection can then be used again
    return body
