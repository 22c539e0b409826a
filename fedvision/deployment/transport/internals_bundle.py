"""Several of Flower's objects in one call (flwr 1.41 and 1.42), contract-tested.

* ``ProtobufClient._unary_unary``: a call of a path that Flower does not have.

A message is seven objects and more, most of them of a few hundred bytes, and Flower takes one a call. Each
call costs a SuperLink milliseconds of the processor's time, however little it carries: for a small model this
was most of what its round cost. Here those that are small go together. A SuperLink without that path knows no
such path and gets them as Flower sends them.

A bundle is a sequence of messages in protobuf's format, each after its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.protobuf.client import ProtobufClient

FLEET, RUNTIME = "/v1/fleet/push-objects", "/v1/runtime/push-objects"
"""Paths of a client's bundles and of the server's."""
LITTLE = 1 << 20
"""Bytes up to which an object goes with others."""
_FULL = 4 << 20
"""Bytes after which a bundle is sent."""


@dataclass(frozen=True)
class Bundle:
    """Objects of one sender."""

    requests: tuple[PushObjectRequest, ...]

    @property
    def node(self) -> Any:
        """The sender."""
        return self.requests[0].node

    def SerializeToString(self, deterministic: bool = True) -> bytes:
        """Return the bundle as it travels."""
        return b"".join(map(_delimited, self.requests))

    @classmethod
    def FromString(cls, body: bytes) -> Bundle:
        """Read a bundle.

        Raises:
            ValueError: It is none, is empty, or has more than one sender.
        """
        requests = tuple(PushObjectRequest.FromString(part) for part in _parts(body))
        if len({request.node.node_id for request in requests}) != 1:
            raise ValueError("a bundle has one sender")
        return cls(requests)


class BundleResponse:
    """What became of each object of a bundle."""

    def __init__(self, stored: Iterable[bool] = ()) -> None:
        self.stored = tuple(stored)

    def SerializeToString(self) -> bytes:
        """Return this as it travels."""
        return b"".join(_delimited(PushObjectResponse(stored=stored)) for stored in self.stored)

    def ParseFromString(self, body: bytes) -> None:
        """Read what ``SerializeToString`` wrote."""
        self.stored = tuple(PushObjectResponse.FromString(part).stored for part in _parts(body))


def bundles(requests: Iterable[PushObjectRequest]) -> Iterator[Bundle]:
    """Yield objects in their order, so many together as may travel in one call."""
    held: list[PushObjectRequest] = []
    size = 0
    for request in requests:
        held.append(request)
        size += len(request.object_content)
        if size > _FULL:
            yield Bundle(tuple(held))
            held, size = [], 0
    if held:
        yield Bundle(tuple(held))


def store_together(state: LinkState, run_id: int, bundle: Bundle) -> list[bool]:
    """Keep a bundle's objects in their order, as ``state.store_object`` keeps each.

    The order is the sender's: whoever sees the last one may have the SuperLink forget them all.

    Args:
        state: The SuperLink's.
        run_id: To which they belong.
        bundle: The objects.

    Returns:
        For each object whether it was waited for.
    """
    return [
        state.store_object(run_id, one.session_id, one.object_id, one.object_content)
        for one in bundle.requests
    ]


def push_bundle(client: ProtobufClient, path: str, bundle: Bundle) -> Sequence[bool]:
    """Send a bundle and return for each object whether it was waited for.

    Raises:
        httpx.HTTPStatusError: The SuperLink has no such path, or says no.
        ValueError: Its answer is none.
    """
    response: BundleResponse = client._unary_unary(
        path=path,
        rpc_method="/flwr.proto.Runtime/PushObject",
        request=bundle,
        response_type=BundleResponse,
    )
    if len(response.stored) != len(bundle.requests):
        raise ValueError("an answer for each object was expected")
    return response.stored


def _delimited(message: Any) -> bytes:
    body: bytes = message.SerializeToString()
    return varint(len(body)) + body


def _parts(body: bytes) -> Iterator[bytes]:
    """Yield the messages of a bundle.

    Raises:
        ValueError: It ends inside one.
    """
    position = 0
    while position < len(body):
        size, position = read_varint(memoryview(body), position)
        if position + size > len(body):
            raise ValueError("the bundle ends inside a message")
        yield body[position : position + size]
        position += size


def split(parts: Sequence[bytes | memoryview], number: int) -> tuple[bytes, list[memoryview]]:
    """Return a message in protobuf's format without one field of bytes, and that field's bytes as they lie.

    Args:
        parts: The message; what stands before the field, and the field's length, are in the first part.
        number: The field's number.

    Raises:
        ValueError: The message ends inside a field, or has one that is neither a number nor bytes.
    """
    body, position, rest = memoryview(parts[0]), 0, bytearray()
    while position < len(body):
        start = position
        tag, position = read_varint(body, position)
        size = 0
        if tag & 7 == 0:
            _, position = read_varint(body, position)
        elif tag & 7 == 2:
            size, position = read_varint(body, position)
        else:
            raise ValueError("not a field of such a message")
        if tag == (number << 3 | 2):
            views = [body[position:], *(memoryview(part) for part in parts[1:])]
            field, behind = _cut(views, size)
            return bytes(rest) + b"".join(behind), field
        position += size
        rest += body[start:position]
    raise ValueError("the field is not in the message's first part")


def _cut(views: Sequence[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """Return the first ``size`` bytes of what lies in several places, and the rest."""
    before, behind = [], []
    for view in views:
        before.append(view[:size])
        behind.append(view[size:])
        size -= len(before[-1])
    if size:
        raise ValueError("the message ends inside a field")
    return before, behind


def read_varint(body: memoryview, position: int) -> tuple[int, int]:
    """Return a number as protobuf writes it, and the position behind it.

    Raises:
        ValueError: There is none.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(body):
            break
        digit, position = body[position], position + 1
        value |= (digit & 0x7F) << shift
        if not digit & 0x80:
            return value, position
    raise ValueError("the message ends inside a number")


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it: seven bits a byte, the lowest first."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
