"""Flower's non-public names for a message as content-addressed objects (flwr 1.41, 1.42), contract-tested.

``internals`` and its neighbours ``internals_...`` are the only files that touch such names. Here:

* ``Array``'s ``_chunks`` and ``ArrayChunk``: a blob's pieces, made when they are sent.
* ``get_object_tree``, ``get_all_nested_objects``: a message as objects.
* ``HEAD_BODY_DIVIDER``, ``HEAD_VALUE_DIVIDER``: what separates an object's kind, its length and its bytes.
* ``make_message``, ``Metadata.__dict__["_message_id"]``, ``["_created_at"]``: a head and its content are
  joined again, and a reply that is sent again is the same message.
* ``FlowerError``, ``ApiErrorCode``: the body of a SuperLink's refusals.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto import message_pb2
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedvision.deployment.transport.message_format import MessageHeader, Source
from fedvision.errors import MALFORMED, FedVisionError, ProtocolError

NODE_UNAVAILABLE = ErrorCode.NODE_UNAVAILABLE
HEARTBEAT_SECONDS = 25.0
"""A node is gone after two of them without a beat: as long as a killed client may take to come back. A link
that is cut for 30 s costs up to 40 s: the last beat was a while before, the next one a while after."""
EMPTY_HEADER = "x-fedvision-empty-for"
"""In a heartbeat: seconds for which the client has had no message in hand."""
_RECORD, _LAYOUT, _ORDER, _ORDERED, _BLOB = "packed", "layout", "order", "ordered", "blob"
_ENDED = {ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, ApiErrorCode.FLEET_GET_RUN_FAILED}
Fetch = Callable[[str], bytes | memoryview]
"""Returns an object's content by id; raises ``NotDeliveredYet``."""
_WAIT_S = 1.0
"""Seconds after which a sender's objects are requested although they seem not to be there."""
_HEAD = 64
"""Bytes within which the words before a piece's bytes end: its kind and its length."""
_PIECE_HEAD = f"{ArrayChunk.__qualname__}{HEAD_VALUE_DIVIDER}".encode()
_R = TypeVar("_R")
_CALL_S, _CONNECT_S = 30.0, 5.0
"""How long a call may take, as in Flower's clients, and a connection."""


class LinkDown(FedVisionError):
    """The SuperLink cannot be reached, or is not able to answer; trying again may help."""


class LinkRefused(FedVisionError):
    """The SuperLink answered no: an unknown key, or one that counts as online elsewhere."""


class RunEnded(FedVisionError):
    """The run to which a message belongs is over; nobody waits for an answer."""


class NotDeliveredYet(FedVisionError):
    """An object was announced, and its sender has not delivered it."""


def call(method: Callable[[Any], _R], request: Any) -> _R:
    """Call the SuperLink; turn its refusals into errors of ours.

    Raises:
        LinkDown: It cannot be reached.
        LinkRefused: It answered no.
        RunEnded: The run is over.
    """
    try:
        return method(request)
    except httpx.HTTPStatusError as error:
        raise refusal(error.response.status_code, error.response.text) from error
    except (httpx.HTTPError, OSError) as error:
        raise LinkDown(str(error) or type(error).__name__) from error
    except ValueError as error:  # a login page of the network's, or half an answer
        raise LinkDown(f"what answers is no SuperLink ({error})") from error


def refusal(status: int, answer: str) -> LinkDown | LinkRefused | RunEnded:
    """Return the error that a SuperLink's answer is, given its HTTP status and body."""
    flower_error = FlowerError.from_json(answer)
    text = (flower_error.message if flower_error else "") or f"HTTP status {status}"
    if flower_error and flower_error.code in _ENDED:
        return RunEnded(text)
    return (LinkDown if status >= 500 else LinkRefused)(text)


class TensorObject(ArrayChunk):
    """A piece of a blob: only its place and its id are held; the bytes are read when it is sent."""

    __qualname__ = "ArrayChunk"

    def __init__(self, source: Source, start: int, stop: int) -> None:
        self._source, self._start, self._stop = source, start, stop
        # Between kind and length an object names its children; a piece has none.
        self._head = _PIECE_HEAD + f"{HEAD_VALUE_DIVIDER}{stop - start}".encode() + HEAD_BODY_DIVIDER
        self.size = len(self._head) + stop - start
        digest = sha256()
        for part in self.views():
            digest.update(part)
        self._id = digest.hexdigest()

    def views(self) -> list[memoryview]:
        """Return the piece as an object, in parts that lie where its bytes are."""
        return [memoryview(self._head), *self._source.views(self._start, self._stop)]

    def deflate(self) -> bytes:
        """Return the piece as an object."""
        return b"".join(self.views())

    @property
    def object_id(self) -> str:
        """The digest of the object."""
        return self._id


class _Blob(Array):
    """An array of bytes that is never in memory as a whole for sending it."""

    __qualname__ = "Array"

    def __init__(self, source: Source, cuts: Sequence[int]) -> None:
        pieces = [TensorObject(source, start, stop) for start, stop in pairwise([0, *cuts])]
        self.__dict__.update(dtype="uint8", shape=(source.size,), stype="fedvision.packed")
        self.__dict__["_chunks"] = [(piece.object_id, piece) for piece in pieces]


@dataclass(frozen=True)
class PackedTensors:
    """A message's tensors, ready to be put into any number of messages."""

    record: ArrayRecord | None
    order: tuple[int, ...]


def pack_tensors(source: Source, layout: MessageHeader) -> PackedTensors:
    """Cut a layout's blob into content-addressed pieces; it is read once here and once when sent."""
    if not source.size:
        return PackedTensors(None, ())
    blob = _Blob(source, layout.cuts())
    # By name: a SuperLink gives a tree's children back in any order.
    unique = sorted(blob.children)
    order = tuple(unique.index(name) for name, _ in blob.slice_array())
    record = ArrayRecord()
    record[_BLOB] = blob  # the constructor would copy the array's data, which is not there
    return PackedTensors(record, order)


def pack_message(layout: MessageHeader, tensors: PackedTensors, *, ordered: bool = True) -> RecordDict:
    """Return the content that travels: the layout as a text, the tensors as one object.

    Whoever reads it relies on ``ordered``: that the objects are sent with the layout last.
    """
    head = ConfigRecord({_LAYOUT: layout.to_text(), _ORDER: list(tensors.order), _ORDERED: ordered})
    blob = {_BLOB: tensors.record} if tensors.record is not None else {}
    return RecordDict({_RECORD: head, **blob})


def contents(content: RecordDict) -> tuple[MessageHeader, bytearray]:
    """Return the layout and the blob of a content that somebody else fetched whole.

    Raises:
        ProtocolError: It is not packed as this version packs it.
    """
    try:
        layout = MessageHeader.from_text(str(content.config_records[_RECORD][_LAYOUT]))
        blob = content.array_records[_BLOB][_BLOB].data if _BLOB in content else b""
    except MALFORMED as error:
        raise ProtocolError("the message is not packed as this version packs it") from error
    return layout, bytearray(blob)


class Kept(Protocol):
    """Where a receiver keeps objects by their ids."""

    def get(self, name: str) -> memoryview | None:
        """Return an object whole and unharmed, or None."""

    def put(self, name: str, content: memoryview) -> None:
        """Keep an object."""


class IncomingMessage:
    """A message that arrived: its head is here, its content still with the SuperLink.

    Args:
        head: The message without content.
        tree: Flower's tree of the content's objects.
        fetch: Returns an object's content by id; raises ``NotDeliveredYet``.
        here: Returns whether pieces may have been delivered, where that is known without a request.
    """

    def __init__(
        self,
        head: Message,
        tree: message_pb2.ObjectTree,
        fetch: Fetch,
        here: Callable[[Sequence[str]], bool] = lambda names: True,
    ) -> None:
        self.head, self.tree, self._fetch, self._here = head, tree, fetch, here
        self._tried = time.monotonic()
        self.pieces: list[str] = []
        """Ids of the pieces in the order of the blob, once it is open."""

    def open(self) -> MessageHeader:
        """Fetch and read the layout; no tensor is fetched.

        Raises:
            NotDeliveredYet: Its sender has not delivered it.
            ProtocolError: It is no message of this kind.
        """
        try:
            head_id, pieces = _parts(self.tree)
            if not self._here(pieces) and time.monotonic() - self._tried < _WAIT_S:
                raise NotDeliveredYet(head_id)
            self._tried = time.monotonic()  # now and then all the same: it may be gone for good
            record = ConfigRecord.inflate(bytes(self._fetch(head_id)))
            layout = MessageHeader.from_text(str(record[_LAYOUT]))
            order = [int(number) for number in record[_ORDER]]  # type: ignore[union-attr]
            self.pieces = [pieces[number] for number in order if number >= 0]
            if not record[_ORDERED]:
                # Forgotten by the SuperLink after the tensors are read, the rest would be refused.
                for name in set(names_of(self.tree)) - {head_id, *pieces}:
                    self._fetch(name)
        except (DecodeError, *MALFORMED) as error:
            raise ProtocolError("the message is not packed as this version packs it") from error
        if len(self.pieces) != len(layout.cuts()):
            raise ProtocolError(f"the message has {len(self.pieces)} pieces for {layout.size:,} bytes")
        return layout

    def read(self, layout: MessageHeader, kept: Kept | None = None) -> Iterator[memoryview]:
        """Fetch the tensors of a layout that was found good, piece by piece.

        Args:
            layout: As ``open`` returned it.
            kept: Where pieces that are the same in every message of the run are, and are put.

        Raises:
            NotDeliveredYet: Its sender has not delivered a piece.
            ProtocolError: A piece has another size than the layout gives it.
        """
        constant = layout.constant_pieces() if kept is not None else ()
        for number, (name, (start, stop)) in enumerate(
            zip(self.pieces, pairwise([0, *layout.cuts()]), strict=True)
        ):
            content = kept.get(name) if kept is not None and number in constant else None
            if content is None:
                content = memoryview(self._fetch(name))
                if kept is not None and number in constant:
                    kept.put(name, content)
            piece = _body(content)
            if len(piece) != stop - start:
                raise ProtocolError(f"a piece of the message has {len(piece):,} bytes, not {stop - start:,}")
            yield piece


def _body(content: memoryview) -> memoryview:
    """Return a piece's bytes where they lie, without the words before them."""
    head, divider, _ = bytes(content[:_HEAD]).partition(HEAD_BODY_DIVIDER)
    if not divider or not head.startswith(_PIECE_HEAD):
        raise ProtocolError("a piece of the message is none")
    return content[len(head) + 1 :]


def is_piece(start: memoryview, size: int) -> bool:
    """Return whether an object of so many bytes, of which the first are given, is a piece as it says."""
    try:
        head = len(start) - len(_body(start))
        return int(bytes(start[: head - 1]).split(b" ")[-1]) == size - head
    except (ProtocolError, ValueError):
        return False


def _parts(tree: message_pb2.ObjectTree) -> tuple[str, list[str]]:
    """Return the id of the layout's record and those of the blob's pieces, sorted, by the tree's shape."""
    (content,) = tree.children
    (head,) = (record for record in content.children if not record.children)
    blobs = [record for record in content.children if record.children]
    if not blobs:
        return head.object_id, []
    ((blob,),) = ([array for array in record.children] for record in blobs)
    return head.object_id, sorted(piece.object_id for piece in blob.children)


def names_of(tree: message_pb2.ObjectTree) -> Iterator[str]:
    """Yield the id of each object of a tree."""
    yield tree.object_id
    for child in tree.children:
        yield from names_of(child)


def objects_of(message: Message) -> tuple[message_pb2.ObjectTree, dict[str, Any]]:
    """Give a message its id; return the tree of its objects and the objects in the order of sending."""
    message.metadata.__dict__["_message_id"] = message.object_id
    return get_object_tree(message), in_order(get_all_nested_objects(message))


def in_order(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return objects with the pieces first and the layouts last.

    Whoever sees a layout may rely on all the rest being there; when it has read the pieces it lets the
    SuperLink forget the message, and what came later would be refused.
    """

    def rank(item: tuple[str, Any]) -> int:
        return isinstance(item[1], ConfigRecord) - isinstance(item[1], TensorObject)

    return dict(sorted(objects.items(), key=rank))


def route_client(client: Any, verify: ssl.SSLContext | bool, proxy: str | None) -> None:
    """Let a ``ProtobufClient`` go straight or to a proxy's URL, whatever the environment says."""
    client._client.close()
    timeout = httpx.Timeout(_CALL_S, connect=_CONNECT_S)
    client._client = httpx.Client(
        verify=verify, timeout=timeout, follow_redirects=True, proxy=proxy, trust_env=False
    )


def fetched(response: message_pb2.PullObjectResponse, name: str) -> bytes:
    """Return an object's content.

    Raises:
        RunEnded: The SuperLink forgot it.
        NotDeliveredYet: Its sender has not delivered it.
    """
    if not response.object_found:
        raise RunEnded(f"the SuperLink no longer has the object {name[:12]}")
    if not response.object_available:
        raise NotDeliveredYet(name)
    return bytes(response.object_content)


def with_content(head: Message, content: RecordDict) -> Message:
    """Return the message of a head with its content."""
    return make_message(metadata=head.metadata, content=content)


def reply_to(head: Message, content: RecordDict | Error) -> Message:
    """Return the reply to a message; made twice it is the same message, for it bears its question's time.

    A SuperLink takes one reply to a message. When the link breaks while its tensors are on their way, only
    the same reply may go on delivering them; another one would be dropped without a notice.
    """
    reply = Message(content, reply_to=head)
    reply.metadata.__dict__["_created_at"] = head.metadata.created_at
    reply.metadata.ttl = head.metadata.ttl
    return reply


def from_node(head: Message, node: int, error: Error) -> Message:
    """Return an error reply that names its node, which the SuperLink's own replies do not."""
    head.metadata.__dict__["_src_node_id"] = node
    return make_message(metadata=head.metadata, error=error)
