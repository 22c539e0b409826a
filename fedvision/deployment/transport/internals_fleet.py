"""Flower's non-public names for a client's connection (flwr 1.41 and 1.42), contract-tested.

* ``FleetHttpClient``, ``NodeAuthHttpInterceptor``, ``fleet_pb2``: what a SuperNode calls. Flower's own
  connection ends the process when it is refused, beats every 30 s and takes no client certificate.
* ``message_to_proto``, ``message_from_proto``, ``remove_content_from_message``, ``run_from_proto``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedvision.deployment.tls import client_context
from fedvision.deployment.transport.internals_bundle import FLEET, LITTLE, push_small
from fedvision.deployment.transport.internals_large_objects import BulkLink
from fedvision.deployment.transport.internals_message_objects import (
    EMPTY_HEADER,
    HEARTBEAT_SECONDS,
    IncomingMessage,
    LinkDown,
    TensorObject,
    call,
    fetched,
    objects_of,
    route_client,
)
from fedvision.deployment.transport.proxies import proxy_for
from fedvision.errors import MALFORMED, ProtocolError

_IDLE_S: ContextVar[float | None] = ContextVar("empty_for", default=None)


class _IdleHeader:
    """Adds to a request for how long the client has had no message in hand."""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        seconds = _IDLE_S.get()
        if seconds is not None:
            context.request.headers[EMPTY_HEADER] = f"{seconds:.1f}"
        return call_next(context)


class FleetLink:
    """A client's connection: Flower's Fleet API as a SuperNode uses it.

    Args:
        address: ``HOST:PORT``.
        key: The client's private key.
        roots: File of the authority that signed the server's certificate; None trusts the system's.
        insecure: Speak plain text.
        certificate: Files of certificate and key for mutual TLS.
        slower: Leave large objects to Flower's client (see ``self_check``).
    """

    def __init__(
        self,
        address: str,
        key: EllipticCurvePrivateKey,
        *,
        roots: Path | None = None,
        insecure: bool = False,
        certificate: tuple[str, str] | None = None,
        slower: bool = False,
    ) -> None:
        self._public = public_key_to_bytes(key.public_key())
        base = f"{'http' if insecure else 'https'}://{address}"
        context = None if insecure else client_context(roots, certificate)
        place = urlsplit(base)
        proxy = proxy_for(place.scheme, place.hostname or "")
        self._bulk = BulkLink(base, key, context)
        self._bulk.direct &= not slower
        self._client = FleetHttpClient(
            base,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
                _IdleHeader(),
            ],
            verify=context or True,
        )
        route_client(self._client, context or True, proxy.url if proxy else None)
        self.node_id = 0
        self._delivered: set[str] = set()

    def _node(self) -> node_pb2.Node:
        return node_pb2.Node(node_id=self.node_id)

    def activate(self) -> int:
        """Go online and return the node's number.

        Raises:
            LinkRefused: The key is unknown, or counts as online.
        """
        request = fleet_pb2.ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_SECONDS)
        self.node_id = int(call(self._client.ActivateNode, request).node_id)
        return self.node_id

    def beat(self, empty_for: float | None = None) -> bool:
        """Report that the node is alive, which also brings it online again; False where it is not known.

        What was given to a client that has had no message in hand ``empty_for`` seconds got lost before that
        on its way and is given again; None says that it has one.
        """
        request = heartbeat_pb2.SendNodeHeartbeatRequest(
            node=self._node(), heartbeat_interval=HEARTBEAT_SECONDS
        )
        token = _IDLE_S.set(empty_for)
        try:
            return bool(call(self._client.SendNodeHeartbeat, request).success)
        finally:
            _IDLE_S.reset(token)

    def deactivate(self) -> None:
        """Go offline at once, so that nobody waits for this client."""
        call(self._client.DeactivateNode, fleet_pb2.DeactivateNodeRequest(node_id=self.node_id))

    def receive(self) -> bytes | None:
        """Return the next message for this node as bytes that can be kept, or None."""
        found = call(self._client.PullMessages, fleet_pb2.PullMessagesRequest(node=self._node()))
        return bytes(found.SerializeToString()) if found.messages_list else None

    def incoming(self, received: bytes) -> IncomingMessage:
        """Return the message that ``receive`` gave.

        Raises:
            ProtocolError: What was kept of it is no message.
        """
        try:
            found = fleet_pb2.PullMessagesResponse.FromString(received)
            head, tree = message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        except (DecodeError, *MALFORMED) as error:
            raise ProtocolError("the message that was kept is damaged") from error
        run_id = head.metadata.run_id

        def fetch(name: str) -> bytes | memoryview:
            request = message_pb2.PullObjectRequest(node=self._node(), run_id=run_id, object_id=name)
            if self._bulk.direct:
                return self._bulk.pull(request)
            return fetched(call(self._client.PullObject, request), name)

        return IncomingMessage(head, tree, fetch)

    def run_config(self, run_id: int) -> Mapping[str, Any]:
        """Return what the server sent of a run when it started it; no code is fetched."""
        found = call(self._client.GetRun, run_pb2.GetRunRequest(node=self._node(), run_id=run_id))
        return dict(run_from_proto(found.run).override_config)

    def answer(
        self,
        message: Message,
        seconds: float,
        session: str = "",
        keep_session: Callable[[str], None] = lambda session: None,
    ) -> None:
        """Send a reply.

        A server that has seen its head takes no second reply to the same question: when the connection
        breaks, the same reply is sent again under the same session, which goes on where it was.

        Args:
            message: As ``reply_to`` makes it.
            seconds: What the task took.
            session: Under which it was sent before, or ``""``.
            keep_session: Called with the session before the tensors are sent.
        """
        with no_object_id_recompute():
            tree, objects = objects_of(message)
            if session:
                self._deliver(message, objects.keys() - self._delivered, objects, session)
                return
            bare = remove_content_from_message(message) if message.has_content() else message
            request = fleet_pb2.PushMessagesRequest(
                node=self._node(),
                messages_list=[message_to_proto(bare)],
                message_object_trees=[tree],
                clientapp_runtime_list=[seconds],
            )
            response = call(self._client.PushMessages, request)
            keep_session(response.session_id)
            self._delivered.clear()
            if not self._deliver(message, set(response.objects_to_push), objects, response.session_id):
                raise LinkDown("the server gave up waiting for the rest of the reply")

    def _deliver(self, message: Message, wanted: Set[str], objects: Mapping[str, Any], session: str) -> bool:
        """Send a reply's objects; return whether each was still waited for."""
        stored, small = True, []
        for name, thing in objects.items():
            if name in wanted:
                request = message_pb2.PushObjectRequest(
                    node=self._node(), run_id=message.metadata.run_id, object_id=name, session_id=session
                )
                if self._bulk.direct and isinstance(thing, TensorObject) and thing.size > LITTLE:
                    stored &= self._bulk.push(request, thing)
                    self._delivered.add(name)
                    continue
                request.object_content = thing.deflate()
                if len(request.object_content) <= LITTLE:
                    small.append(request)
                    continue
                stored &= call(self._client.PushObject, request).stored
                self._delivered.add(name)
        for request, kept in push_small(self._client, FLEET, small):
            self._delivered.add(request.object_id)
            stored &= kept
        return stored

    def confirm(self, incoming: IncomingMessage) -> None:
        """Let the SuperLink forget a message's content."""
        request = message_pb2.ConfirmMessageReceivedRequest(
            node=self._node(),
            run_id=incoming.head.metadata.run_id,
            message_object_id=incoming.head.metadata.message_id,
        )
        call(self._client.ConfirmMessageReceived, request)

    def close(self) -> None:
        """Close the connections."""
        self._bulk.close()
        self._client.close()
