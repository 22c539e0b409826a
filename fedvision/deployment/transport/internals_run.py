"""Flower's non-public names for the server's own connection (flwr 1.41 and 1.42), contract-tested.

* ``ControlHttpClient``, ``RuntimeHttpClient``, ``RuntimeTokenHttpInterceptor``,
  ``SuperExecAuthHttpInterceptor``: what ``flwr run``, the superexec and a ServerApp process call; here one
  process is all three.
* ``TaskIdentity``: which run the messages of this process belong to.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto, user_config_to_proto
from flwr.proto import control_pb2, fab_pb2, message_pb2, node_pb2, runtime_pb2
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedvision.deployment.tls import loopback_context
from fedvision.deployment.transport.blob_store import IN_FILE, SMALL, BlobStore
from fedvision.deployment.transport.internals_bundle import LITTLE, RUNTIME, push_small
from fedvision.deployment.transport.internals_message_objects import (
    IncomingMessage,
    LinkDown,
    LinkRefused,
    TensorObject,
    call,
    fetched,
    in_order,
    objects_of,
    route_client,
)

_GAVE_UP = "the SuperLink gave up waiting for the rest of a message"


def silence(address: str, roots: Path | None, *, within: float = 5.0) -> str:
    """Return why no SuperLink answers on its private side, or nothing where one does.

    Args:
        address: ``HOST:PORT`` of the private side.
        roots: File of the authority that signed the certificate; None sends plain text.
        within: Seconds that each step of the answer may take.
    """
    try:
        url = f"{_base(address, roots)}/health"
        answer = httpx.get(url, verify=_verify(roots), timeout=within, trust_env=False)
    except (httpx.HTTPError, OSError) as error:
        return str(error) or type(error).__name__
    return "" if answer.is_success else f"HTTP status {answer.status_code}"


def _base(address: str, roots: Path | None) -> str:
    return f"{'https' if roots else 'http'}://{address}"


def _verify(roots: Path | None) -> ssl.SSLContext | bool:
    return loopback_context(roots) if roots else True


class RunLink:
    """The server's connection to its SuperLink's private side: starts a run and is its ServerApp.

    Args:
        address: ``HOST:PORT`` of the private side.
        roots: File of the authority that signed the certificate; None sends plain text.
        secret: What a process that runs server apps must know, or None.
        objects: Folder in which a SuperLink on this machine keeps objects; None sends and fetches all.
    """

    def __init__(
        self, address: str, *, roots: Path | None, secret: bytes | None = None, objects: Path | None = None
    ) -> None:
        self._base, self._verify = _base(address, roots), _verify(roots)
        self._secret = secret
        self._blobs = BlobStore(objects) if objects else None
        self._control = self._connect(ControlHttpClient, "flwr-cli")
        self._runtime: RuntimeHttpClient | None = None
        self.run_id = 0

    def _connect(self, kind: type[Any], component: str, *more: Any) -> Any:
        version = RuntimeVersionHttpInterceptor(component_name=component)
        client = kind(self._base, interceptors=[version, *more], verify=self._verify)
        route_client(client, self._verify, None)  # it never leaves this machine
        return client

    def nodes(self) -> Sequence[Any]:
        """Return every node that is registered: ``node_id``, ``name``, ``status``, ``online_until``."""
        found = call(self._control.ListNodes, control_pb2.ListNodesRequest())
        return list(found.nodes_info)

    def start(self, bundle: bytes, config: Mapping[str, Any]) -> int:
        """Start a run, become its ServerApp and return its number.

        Raises:
            LinkRefused: The SuperLink does not take the bundle, or the secret is wrong.
        """
        request = control_pb2.StartRunRequest(
            fab=fab_pb2.Fab(content=bundle), override_config=user_config_to_proto(dict(config))
        )
        run_id = int(call(self._control.StartRun, request).run_id)
        if not run_id:
            raise LinkRefused("the SuperLink did not start the run")
        token = self._acquire(run_id)
        self._runtime = self._connect(
            RuntimeHttpClient, "flwr-serverapp", RuntimeTokenHttpInterceptor(token=token)
        )
        found = call(self._runtime.PullTaskInput, runtime_pb2.PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = found.task_id, found.run.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self.run_id = run_id
        return run_id

    def _acquire(self, run_id: int) -> str:
        protected = ["/flwr.proto.Runtime/AcquireTask"]
        secret = self._secret
        sign = (
            [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=protected)]
            if secret
            else []
        )
        client = self._connect(RuntimeHttpClient, "flwr-superexec", *sign)
        request = runtime_pb2.AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        try:
            while (found := call(client.AcquireTask, request)).token:
                if found.task.run_id == run_id:
                    return str(found.token)
                self.stop(found.task.run_id)
            raise LinkRefused(f"another process took run {run_id}")
        finally:
            client.close()

    def stop(self, run_id: int) -> None:
        """End a run that is not over; one that is, or is not known, is left alone."""
        try:
            call(self._control.StopRun, control_pb2.StopRunRequest(run_id=run_id))
        except LinkRefused:
            pass

    def _running(self) -> RuntimeHttpClient:
        if self._runtime is None:
            raise LinkRefused("no run was started")
        return self._runtime

    def beat(self) -> bool:
        """Report that the ServerApp is alive.

        Raises:
            LinkRefused: The run was stopped from outside, or its server sent no heartbeat for a minute.
        """
        request = runtime_pb2.SendTaskHeartbeatRequest()
        return bool(call(self._running().SendTaskHeartbeat, request).success)

    def online(self) -> dict[int, str]:
        """Return the nodes that are online now: ``{node: name}``."""
        found = call(self._running().GetNodes, runtime_pb2.GetNodesRequest())
        return {int(node.node_id): str(node.name) for node in found.nodes}

    def push(
        self, messages: Sequence[Message], before_sending: Callable[[], None] = lambda: None
    ) -> list[str]:
        """Send packed messages and return their ids; the same message may be pushed again.

        ``before_sending`` is called when all is made ready, before anybody can see it.
        """
        with no_object_id_recompute():
            trees, objects = [], {}
            for message in messages:
                tree, nested = objects_of(message)
                trees.append(tree)
                objects.update(nested)
            heads = [message_to_proto(remove_content_from_message(message)) for message in messages]
            in_store = {name for name, thing in objects.items() if self._stores(name, thing)}
            before_sending()
            request = runtime_pb2.PushAppMessagesRequest(messages_list=heads, message_object_trees=trees)
            response = call(self._running().PushMessages, request)
            wanted = set(response.objects_to_push)
            objects = {name: thing for name, thing in in_order(objects).items() if name in wanted}
            self._push_objects(objects, in_store, response.session_id)
        return list(response.message_ids)

    def _push_objects(self, objects: Mapping[str, Any], in_store: Set[str], session: str) -> None:
        """Send objects, small ones together; one that the SuperLink can see as a file by its name alone."""

        def request(name: str, content: bytes) -> message_pb2.PushObjectRequest:
            node = node_pb2.Node(node_id=SUPERLINK_NODE_ID)
            return message_pb2.PushObjectRequest(
                node=node, run_id=self.run_id, object_id=name, object_content=content, session_id=session
            )

        def push(name: str, content: bytes) -> None:
            if not call(self._running().PushObject, request(name, content)).stored:
                raise LinkDown(_GAVE_UP)

        small = []
        for name, thing in objects.items():
            content = IN_FILE if name in in_store else thing.deflate()
            if len(content) <= LITTLE:
                small.append(request(name, content))
            else:
                push(name, content)
        for sent, stored in push_small(self._running(), RUNTIME, small):
            if not stored and sent.object_content == IN_FILE:
                push(sent.object_id, objects[sent.object_id].deflate())
            elif not stored:
                raise LinkDown(_GAVE_UP)

    def _stores(self, name: str, thing: Any) -> bool:
        """Put an object where the SuperLink sees it, if it is worth a file and there is a shelf."""
        if not isinstance(thing, TensorObject) or thing.size <= SMALL:
            return False
        if self._blobs is None or not self._blobs.is_open:
            return False
        self._blobs.put(name, *thing.views())
        return True

    def pull(self, ids: Sequence[str]) -> list[IncomingMessage]:
        """Return the replies that are there; the SuperLink gives each reply once."""
        found = call(self._running().PullMessages, runtime_pb2.PullAppMessagesRequest(message_ids=ids))
        node = node_pb2.Node(node_id=SUPERLINK_NODE_ID)

        def here(names: Sequence[str]) -> bool:
            # All pieces but the last are files once they have come.
            if self._blobs is None or not self._blobs.is_open:
                return True
            return sum(not self._blobs.place(name).exists() for name in names) <= 1

        def fetch(name: str) -> bytes | memoryview:
            held = self._blobs.get(name) if self._blobs else None
            if held is not None:
                return held
            request = message_pb2.PullObjectRequest(node=node, run_id=self.run_id, object_id=name)
            return fetched(call(self._running().PullObject, request), name)

        pairs = zip(found.messages_list, found.message_object_trees, strict=True)
        return [IncomingMessage(message_from_proto(head), tree, fetch, here) for head, tree in pairs]

    def confirm(self, incoming: IncomingMessage) -> None:
        """Let the SuperLink forget a reply's content."""
        request = message_pb2.ConfirmMessageReceivedRequest(
            node=node_pb2.Node(node_id=SUPERLINK_NODE_ID),
            run_id=self.run_id,
            message_object_id=incoming.head.metadata.message_id,
        )
        call(self._running().ConfirmMessageReceived, request)

    def finish(self, outcome: str, details: str) -> None:
        """Report to the SuperLink how the run ended: ``"completed"`` or ``"failed"``."""
        request = runtime_pb2.PushTaskOutputRequest(sub_status=outcome, details=details)
        call(self._running().PushTaskOutput, request)

    def close(self) -> None:
        """Close the connections."""
        self._control.close()
        if self._runtime is not None:
            self._runtime.close()
