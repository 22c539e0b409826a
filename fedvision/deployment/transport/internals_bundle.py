"""Several of Flower's objects in one call (flwr 1.41 and 1.42), contract-tested.

* ``ProtobufClient._unary_unary``: a call of a path that Flower does not have.
* ``PushObjectRequest``, ``Node``: a bundle holds such requests, and names its sender as each of them does.

A message is seven objects and more, most of them of a few hundred bytes, and Flower takes one a call. Each
call costs a SuperLink milliseconds of the processor's time, however little it carries: for a small model this
was most of what its round cost. Here those that are small go together. A SuperLink without that path knows no
such path and gets them as Flower sends them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from flwr.proto.message_pb2 import PushObjectRequest
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

from fedvision.deployment.transport.internals_message_objects import LinkRefused, call

if TYPE_CHECKING:
    from flwr.server.superlink.linkstate import LinkState

FLEET, RUNTIME = "/v1/fleet/push-objects", "/v1/runtime/push-objects"
"""Paths of a client's bundles and of the server's."""
LITTLE = 1 << 20
"""Bytes up to which an object goes with others."""
_FULL = 4 << 20
"""Bytes after which a bundle is sent."""


def _message_types() -> tuple[Any, Any]:
    """Return ``{Node node; repeated PushObjectRequest requests}`` and ``{repeated bool stored}``."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="fedvision/bundle.proto", package="fedvision")
    file.syntax = "proto3"
    file.dependency.extend(["flwr/proto/message.proto", "flwr/proto/node.proto"])
    bundle, response = (file.message_type.add(name=name) for name in ("Bundle", "BundleResponse"))
    named = {"type": field.TYPE_MESSAGE, "type_name": ".flwr.proto.Node"}
    bundle.field.add(name="node", number=1, label=field.LABEL_OPTIONAL, **named)
    named["type_name"] = ".flwr.proto.PushObjectRequest"
    bundle.field.add(name="requests", number=2, label=field.LABEL_REPEATED, **named)
    response.field.add(name="stored", number=1, label=field.LABEL_REPEATED, type=field.TYPE_BOOL)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    found = (pool.FindMessageTypeByName(f"fedvision.{name}") for name in ("Bundle", "BundleResponse"))
    made = tuple(map(message_factory.GetMessageClass, found))
    return made[0], made[1]


Bundle, BundleResponse = _message_types()


def bundles(requests: Iterable[PushObjectRequest]) -> Iterator[Any]:
    """Yield one sender's objects in their order, so many together as may travel in one call."""
    held: list[PushObjectRequest] = []
    size = 0
    for request in requests:
        held.append(request)
        size += len(request.object_content)
        if size > _FULL:
            yield Bundle(node=held[0].node, requests=held)
            held, size = [], 0
    if held:
        yield Bundle(node=held[0].node, requests=held)


def store_together(state: LinkState, run_id: int, bundle: Any) -> list[bool]:
    """Keep a bundle's objects in their order; return for each whether it was waited for.

    The order is the sender's: whoever sees the last one may have the SuperLink forget them all.

    Raises:
        ValueError: It is empty, or has another sender than it says; nothing is kept.
    """
    if {request.node.node_id for request in bundle.requests} != {bundle.node.node_id}:
        raise ValueError("a bundle has one sender")
    return [
        state.store_object(run_id, one.session_id, one.object_id, one.object_content)
        for one in bundle.requests
    ]


def push_small(
    client: Any, path: str, requests: Iterable[PushObjectRequest]
) -> Iterator[tuple[PushObjectRequest, bool]]:
    """Send small objects, so many together as may travel, and yield each with whether it was waited for.

    Args:
        client: One of Flower's clients, which has the call ``PushObject``.
        path: ``FLEET`` or ``RUNTIME``.
        requests: The objects.

    Raises:
        LinkDown, LinkRefused, RunEnded: As ``call``.
    """
    for bundle in bundles(requests):
        try:
            stored = call(partial(push_bundle, client, path), bundle)
        except LinkRefused:  # a SuperLink that is not ours, or one that shall say in Flower's words why not
            stored = [call(client.PushObject, request).stored for request in bundle.requests]
        yield from zip(bundle.requests, stored, strict=True)


def push_bundle(client: Any, path: str, bundle: Any) -> Sequence[bool]:
    """Send a bundle and return for each object whether it was waited for.

    Raises:
        httpx.HTTPStatusError: The SuperLink has no such path, or says no.
        ValueError: Its answer is none.
    """
    stored: Sequence[bool] = client._unary_unary(
        path=path,
        rpc_method="/flwr.proto.Runtime/PushObject",
        request=bundle,
        response_type=BundleResponse,
    ).stored
    if len(stored) != len(bundle.requests):
        raise ValueError("an answer for each object was expected")
    return stored


def split(parts: Sequence[bytes | memoryview], kind: type[Any], name: str) -> tuple[bytes, list[memoryview]]:
    """Return a message in protobuf's format without one field of bytes, and that field's bytes as they lie.

    Args:
        parts: The message; what stands before the field, and the field's length, are in the first part.
        kind: Of message.
        name: The field's.

    Raises:
        ValueError: The message ends inside a field, or has one that is neither a number nor bytes.
    """
    body, position, wanted = memoryview(parts[0]), 0, _tag(kind, name)
    while position < len(body):
        start = position
        tag, position = _read_varint(body, position)
        if tag & 7 not in (0, 2):
            raise ValueError("not a field of such a message")
        number, position = _read_varint(body, position)
        if tag == wanted:
            field, behind, size = [], [bytes(body[:start])], number
            for view in (body[position:], *(memoryview(part) for part in parts[1:])):
                field.append(view[:size])
                behind.append(bytes(view[size:]))
                size -= len(field[-1])
            if size:
                raise ValueError("the message ends inside a field")
            return b"".join(behind), field
        position += number if tag & 7 == 2 else 0
    raise ValueError("the field is not in the message's first part")


def before_field(message: Any, name: str, size: int) -> bytes:
    """Return a message in protobuf's format up to the bytes of its last field.

    Args:
        message: All other fields.
        name: The last one's.
        size: Its bytes.
    """
    before: bytes = message.SerializeToString() + varint(_tag(type(message), name)) + varint(size)
    return before


def _tag(kind: Any, name: str) -> int:
    number: int = kind.DESCRIPTOR.fields_by_name[name].number
    return number << 3 | 2


def _read_varint(body: memoryview, position: int) -> tuple[int, int]:
    """Return a number as protobuf writes it, and the position behind it."""
    value = 0
    for shift, digit in zip(range(0, 70, 7), body[position : position + 10], strict=False):
        value |= (digit & 0x7F) << shift
        if not digit & 0x80:
            return value, position + shift // 7 + 1
    raise ValueError("the message ends inside a number")


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it: seven bits a byte, the lowest first."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
