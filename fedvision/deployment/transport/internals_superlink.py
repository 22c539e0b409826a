"""Flower's non-public names for a SuperLink and for who may call it (flwr 1.41 and 1.42), contract-tested.

* ``create_app``, ``SuperLinkLifespanConfig``, ``SuperLinkLifespan``: the SuperLink as an ASGI application,
  which its command would serve on a single socket.
* ``PROTOBUF_REQUEST_TYPES``: the paths that clients call, every one behind Flower's check of signatures.
* ``LinkState.create_node``, ``delete_node``, ``get_node_info``: which keys may call.
* ``MessageIns``, ``MessageRes``: which messages a node was given, and which it answered.
* ``public_key_to_bytes``, ``bytes_to_public_key``, ``sign_message``, ``verify_signature`` and the headers'
  names: how a call is signed.
* ``PushMessagesRequest``, ``ConfirmMessageReceivedRequest``: the calls that name somebody's message.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Set
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    public_key_to_bytes,
    sign_message,
    verify_signature,
)
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedvision.deployment.transport.blob_store import BlobStore

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.server.superlink.linkstate import LinkState as LinkState
    from flwr.server.superlink.linkstate import SqlLinkState
    from starlette.types import ASGIApp, Message, Receive

PUBLIC_KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode()
"""Header of a client's call that holds its public key: PEM, base64; lower case as in ASGI."""
MEDIA_TYPE = PROTOBUF_MEDIA_TYPE
"""Content type of a call's body."""
SIGNATURE_HEADER = FLEET_HTTP_SIGNATURE_HEADER.lower().encode()
TIME_HEADER = TIMESTAMP_HEADER.lower().encode()
"""Headers with the time of a call and the signature over it, base64."""
PUSH_MESSAGES, PUSH_OBJECT = "/v1/fleet/push-messages", "/v1/fleet/push-object"
"""The calls that bring more than a question; a message's head alone, and its tensors."""
CONFIRM = "/v1/fleet/confirm-message-received"
NAMING = {PUSH_MESSAGES, CONFIRM}
"""The calls that name messages, whose nodes Flower does not compare with the one that signed."""
GET_RUN = "/v1/fleet/get-run"
"""One of ``fleet_paths``: a question that changes nothing."""
NOT_ACTIVATED = int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)
"""Code that Flower's clients print when the server does not let them in."""
CLOCK_AHEAD_S, CLOCK_BEHIND_S = SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
"""Seconds by which a client's clock may be ahead of the server's, and behind it: else it is refused."""


def fleet_paths() -> frozenset[str]:
    """Return the paths that clients call with POST; Flower checks who calls on each of them."""
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    return frozenset(
        path for method, path in PROTOBUF_REQUEST_TYPES if method == "POST" and path.startswith("/v1/fleet/")
    )


def signed_headers(key: EllipticCurvePrivateKey) -> dict[str, str]:
    """Return the headers by which a client shows a SuperLink, for some minutes, that it holds a key."""
    time = now().isoformat()
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
        TIMESTAMP_HEADER: time,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, time.encode())).decode(),
    }


def is_signed(key: bytes, time: bytes, signature: bytes) -> bool:
    """Return whether a call is signed by its key (PEM), and now: Flower's own check, before a body is there.

    Time (ISO 8601) and signature (base64) are the headers as they came.
    """
    try:
        age = (now() - datetime.fromisoformat(time.decode("ascii"))).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return False
        return bool(verify_signature(bytes_to_public_key(key), time, b64decode(signature, validate=True)))
    except (ValueError, TypeError, binascii.Error):
        return False


def superlink(
    *,
    host: str,
    port: int,
    database: Path,
    tls: Mapping[str, Path] | None,
    secret: bytes,
    shortcuts: bool = True,
) -> tuple[ASGIApp, SqlLinkState]:
    """Return Flower's SuperLink as an ASGI application, and its state.

    Clients must sign their calls; programs that a run names are never installed.

    Args:
        host: Of the socket that the processes of a run on this machine will reach.
        port: Of the same.
        database: SQLite file, beside which a folder of objects is made.
        tls: Files ``ca``, ``certificate`` and ``key``, or None for plain text.
        secret: What a process must know that runs server apps.
        shortcuts: Whether objects are kept in files; Flower keeps them in its database.
    """
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    files = {name: str(path) for name, path in (tls or {}).items()}
    pem = (tls["ca"].read_bytes(), tls["certificate"].read_bytes(), tls["key"].read_bytes()) if tls else None
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host=host,
        port=port,
        insecure=tls is None,
        certificates=pem,
        superexec_auth_secret=secret,
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=files.get("ca"),
        ssl_certfile=files.get("certificate"),
        ssl_keyfile=files.get("key"),
        database=str(database),
        isolation="process",
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    state, objects = app.state.linkstate_factory.state(), database.with_suffix(".objects")
    if shortcuts:
        from fedvision.deployment.transport.internals_store import keep_in_files

        keep_in_files(app, state, objects)
    else:
        BlobStore(objects).close()
    return app, state


def replay(body: list[bytes], receive: Receive) -> Receive:
    """Return a ``receive`` (ASGI) that gives a body's parts, then what the connection has."""

    async def replayed() -> Message:
        if not body:
            return await receive()
        part = body.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(body)}

    return replayed


ANOTHERS = "a message in another client's name"


def wrong_with(
    path: str,
    body: bytes,
    owner: Callable[[str], int | None],
    announced: Callable[[str], Set[str] | None],
    most: int,
) -> str:
    """Return why a call whose path is in ``NAMING`` is refused; empty where it is not.

    Args:
        path: The call's.
        body: Its body.
        owner: As the function of that name on the SuperLink's state: no node may act for another.
        announced: Likewise: Flower notes whatever objects come with a reply that it has already.
        most: Objects of a reply at most.
    """
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    from fedvision.deployment.transport.internals_message_objects import names_of

    try:
        if path != PUSH_MESSAGES:
            request = ConfirmMessageReceivedRequest.FromString(body)
            return ANOTHERS if owner(request.message_object_id) not in (None, request.node.node_id) else ""
        request = PushMessagesRequest.FromString(body)
    except DecodeError:  # Flower does not read it either
        return ""
    if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
        return ANOTHERS
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return "no reply, or several in one call"
    message, tree = request.messages_list[0].metadata.message_id, request.message_object_trees[0]
    objects = list(islice(names_of(tree), most + 1))
    if len(objects) > most:
        return f"a reply of more than {most} objects"
    if tree.object_id != message:
        return "a reply whose objects are another message's"
    if announced(message) not in (None, set(objects)):
        return "a reply that has other objects than when it was sent before"
    return ""


def announced(state: LinkState, message: str) -> Set[str] | None:
    """Return the ids of all objects of a message that is there, None where it is not."""
    from flwr.supercore.object_store.object_store import NoObjectInStoreError

    from fedvision.deployment.transport.internals_message_objects import names_of

    try:
        return frozenset(names_of(state.object_store.get_object_tree(message)))
    except NoObjectInStoreError:
        return None


def owner(state: SqlLinkState, message: str) -> int | None:
    """Return the node to which a message went or from which a reply came, None where nobody knows it."""
    from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
    from flwr.supercore.utils import int64_to_uint64
    from sqlalchemy import select

    sent = select(MessageIns.dst_node_id).where(MessageIns.message_id == message)
    answered = select(MessageRes.src_node_id).where(MessageRes.message_id == message)
    with state.session() as session:
        found = session.scalar(sent.union_all(answered).limit(1))
    return None if found is None else int(int64_to_uint64(found))


def heartbeat_node(body: bytes) -> int:
    """Return the number of the node that a heartbeat's body names."""
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

    return int(SendNodeHeartbeatRequest.FromString(body).node.node_id)


def redeliver(state: SqlLinkState, node: int, seconds: float) -> int:
    """Let a node have again what it was given and has not answered; return how many messages that is.

    Flower gives every message once: what is lost with the answer that carries it is lost for good, and the
    server waits for a reply that nobody works on. The node says that it has had nothing in hand for so many
    seconds; what it was given since may be under way.
    """
    from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
    from flwr.supercore.utils import uint64_to_int64
    from sqlalchemy import select, update

    lost = (
        MessageIns.dst_node_id == uint64_to_int64(node),
        MessageIns.delivered_at != "",
        MessageIns.delivered_at <= (now() - timedelta(seconds=seconds)).isoformat(),
        MessageIns.message_id.not_in(select(MessageRes.reply_to_message_id)),
    )
    with state.session() as session:
        found = session.scalars(select(MessageIns.message_id).where(*lost)).all()
        if found:
            session.execute(update(MessageIns).where(*lost).values(delivered_at=""))
    return len(found)


def keys(state: LinkState, *, removed: bool = False) -> dict[bytes, NodeInfo]:
    """Return public key (PEM) -> ``node_id`` and ``name`` of every client that may call, or may no more."""
    nodes = state.get_node_info(owner_aids=[NOOP_FLWR_AID])
    return {node.public_key: node for node in nodes if (node.status == "unregistered") == removed}


def register_key(state: LinkState, key: bytes, name: str) -> None:
    """Let a client call, as ``flwr supernode register`` would.

    Raises:
        ValueError: The key was registered before, or removed: Flower takes no key twice.
    """
    state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL, name=name)


def remove_key(state: LinkState, node: int) -> None:
    """Refuse a client's calls from now on."""
    state.delete_node(NOOP_FLWR_AID, node)
