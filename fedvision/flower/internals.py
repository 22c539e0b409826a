"""The only file that touches Flower's non-public names (flwr 1.41 and 1.42); each has a contract test.

What is leaned on, and why:

* ``TaskIdentity``: ``Message(...)`` reads run, node and task from these process-wide values, which a
  SuperLink would set. One run a process at a time.
* ``Run``: the type of ``Grid.run``.
* ``Message.__dict__["_metadata"]`` and in it ``__dict__["_message_id"]``: the id that a SuperLink would give;
  replies are matched by it.
* ``Array``'s fields in ``__dict__``: ``TensorArray`` fills ``data`` only when something asks for bytes.
* ``__dict__["_data"]`` of records: the values by name, filled without a check of each.
* ``ErrorCode.CLIENT_APP_RAISED_EXCEPTION``: the code of an error reply.
* ``create_app``, ``SuperLinkLifespanConfig``, ``SuperLinkLifespan``: the SuperLink as an ASGI application,
  which its command would serve on a single socket.
* ``PROTOBUF_REQUEST_TYPES``: the paths that clients call, every one behind Flower's check of signatures.
* ``LinkState.create_node``, ``delete_node``, ``get_node_info``: which keys may call.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    ErrorCode,
    SType,
)
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_IN_MEMORY_DB_NAME,
)
from flwr.supercore.date import now
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    import torch
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from flwr.server.superlink.linkstate import LinkState as LinkState

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord, RecordDict)
CLIENT_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
REPLY_REFUSED = 100
"""Code of an error reply that stands for a reply that could not be used; Flower has none above 8."""
SERVER_NODE = SUPERLINK_NODE_ID
PARTITION = "partition-id"
"""Flower's key in ``node_config`` for the number of a simulated client."""
PUBLIC_KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode()
"""Header of a client's call that holds its public key: PEM, base64; lower case as in ASGI."""
MEDIA_TYPE = PROTOBUF_MEDIA_TYPE
"""Content type of a call's body."""
ASK_RUN = "/v1/fleet/get-run"
"""One of ``fleet_paths``: a question that changes nothing."""
NOT_ACTIVATED = int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)
"""Code that Flower's clients print when the server does not let them in."""
CLOCK_AHEAD_S, CLOCK_BEHIND_S = SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
"""Seconds by which a client's clock may be ahead of the server's, and behind it: else it is refused."""
IN_MEMORY = FLWR_IN_MEMORY_DB_NAME
"""Name of a SuperLink database that ends with the process."""


class TensorArray(Array):
    """An ``Array`` that holds a CPU tensor and serialises it only when ``data`` is asked for.

    Inside one process nothing ever asks: 100 replies of 8 tensors cost 21 ms instead of 98.
    """

    # The name stands in the serialised object, by which the other side finds the class to build.
    __qualname__ = "Array"

    def __init__(self, tensor: torch.Tensor) -> None:
        self.__dict__.update(
            _tensor=tensor, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape)
        )
        self.__dict__["stype"] = SType.NUMPY

    def __getattr__(self, name: str) -> Any:
        if name != "data":
            raise AttributeError(name)
        data = Array.from_torch_tensor(self.tensor).data
        self.__dict__["data"] = data
        return data

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor itself; not to be changed in place."""
        held: torch.Tensor = self.__dict__["_tensor"]
        return held

    def numpy(self) -> Any:
        """Return the tensor's memory as a NumPy array, without a copy."""
        return self.tensor.numpy()


class DistantArray(Array):
    """An ``Array`` whose numbers lie in another process of this program, from which slices are fetched.

    Args:
        dtype: NumPy's name of the type.
        shape: [layers, ...].
        part: As ``strategies.summation.Distant`` has it.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], part: Callable[[int, int], torch.Tensor]) -> None:
        self.__dict__.update(dtype=dtype, shape=shape, part=part, stype=SType.NUMPY)


def filled(kind: type[R], values: Mapping[str, Any]) -> R:
    """Return a record of values whose types are known to be right: Flower would check every one anew."""
    record = kind()
    record.__dict__["_data"].update(values)
    return record


def identify(run_id: int) -> None:
    """Tell Flower which run this process carries, as a SuperLink would."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SERVER_NODE, 1


def empty_run(run_id: int) -> Run:
    """Return the facts of a run that no SuperLink knows."""
    return Run.create_empty(run_id)


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would give it."""
    message.__dict__["_metadata"].__dict__["_message_id"] = message_id


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


def superlink(
    *,
    host: str,
    port: int,
    database: str,
    tls: Mapping[str, Path] | None,
    isolation: str,
    secret: bytes | None,
) -> tuple[Callable[..., Awaitable[None]], LinkState]:
    """Return Flower's SuperLink as an ASGI application, and its state.

    Clients must sign their calls; programs that a run names are never installed.

    Args:
        host: Of the socket that the processes of a run on this machine will reach.
        port: Of the same.
        database: SQLite file, or ``IN_MEMORY``.
        tls: Files ``ca``, ``certificate`` and ``key``, or None for plain text.
        isolation: ``"subprocess"`` starts the process that runs server apps, ``"process"`` waits for one.
        secret: What such a waiting process must know, or None.
    """
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    names = ("ca", "certificate", "key")
    files = {name: str(tls[name]) if tls else None for name in names}
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
        ssl_ca_certfile=files["ca"],
        ssl_certfile=files["certificate"],
        ssl_keyfile=files["key"],
        database=database,
        isolation=isolation,
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    return app, app.state.linkstate_factory.state()


def heartbeat_node(body: bytes) -> int:
    """Return the number of the node that a heartbeat's body names."""
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

    return int(SendNodeHeartbeatRequest.FromString(body).node.node_id)


def give_again(state: LinkState, node: int, seconds: float) -> int:
    """Let a node have again what it was given and has not answered; return how many messages that is.

    Flower gives every message once: what is lost with the answer that carries it is lost for good, and the
    server waits for a reply that nobody works on. Only a state in a database knows what it gave.

    Args:
        state: The SuperLink's.
        node: Who says that it has nothing in hand.
        seconds: For how long; what it was given since may be under way.
    """
    from flwr.supercore.date import now
    from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
    from flwr.supercore.utils import uint64_to_int64
    from sqlalchemy import select, update

    if not hasattr(state, "session"):
        return 0
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


def registered_keys(state: LinkState) -> dict[bytes, int]:
    """Return public key (PEM) -> node number of every client that may call."""
    nodes = state.get_node_info(owner_aids=[NOOP_FLWR_AID])
    return {node.public_key: node.node_id for node in nodes if node.status != "unregistered"}


def register_key(state: LinkState, key: bytes, name: str) -> None:
    """Let a client call, as ``flwr supernode register`` would.

    Raises:
        ValueError: The key was registered before, or removed: Flower takes no key twice.
    """
    state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL, name=name)


def remove_key(state: LinkState, node: int) -> None:
    """Refuse a client's calls from now on."""
    state.delete_node(NOOP_FLWR_AID, node)


def quiet() -> None:
    """Keep Flower's own log lines to warnings: progress and records are fedvision's."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
