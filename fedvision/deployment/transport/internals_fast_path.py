"""Flower's non-public names behind the calls of a round (flwr 1.41 and 1.42), contract-tested.

* ``authenticate_node``, ``get_linkstate``: Flower's own check of who calls.
* ``authenticate_task``: the same for the process that is the run's ServerApp.
* ``check_abort``, ``fleet_handlers``, ``runtime_handlers``, ``store_object``, ``store_traffic``: its own
  answers to such calls, and what they are made of.
* ``PROTOBUF_REQUEST_TYPES``: the message of a call, by its path.
* ``PullObjectResponse``: its bytes are put together by hand, so that a file is never in memory as a whole.

Flower hands every call through six layers of middleware, each of which copies the body or starts a task for
every piece of it, and holds the whole answer in memory. What every round calls goes past them here: the same
checks, the same work, and files leave as they are read. Whatever is unusual goes Flower's way, errors above
all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.server.superlink.linkstate import LinkState
from flwr.server.superlink.utils import check_abort
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.dependencies.linkstate import get_linkstate
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from fedvision.deployment.transport.blob_store import IN_FILE
from fedvision.deployment.transport.internals_bundle import (
    FLEET,
    RUNTIME,
    Bundle,
    BundleResponse,
    before_field,
    split,
    store_together,
)
from fedvision.deployment.transport.internals_store import FileObjectStore
from fedvision.deployment.transport.internals_superlink import replay

Answer = tuple[bytes, Path | None]
_CHUNK = 1 << 18
"""Bytes of a file that are in memory at a time, for each client that fetches."""
_FRESH_S = 1.0
_ENDED = [Status.PENDING, Status.STARTING, Status.FINISHED]


class FastPath:
    """An ASGI application that serves a round's calls itself and leaves all else to ``app``, Flower's."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._going_on: dict[int, float] = {}
        self._work = {path: _flowers_call(path, check) for path, check in _FLOWERS.items()} | {
            "/v1/fleet/push-object": _Call(PushObjectRequest, self._push_to_file, _client, "object_content"),
            "/v1/fleet/pull-object": _Call(PullObjectRequest, self._pull_from_file, _client),
            FLEET: _Call(Bundle, self._push_bundle, _client),
            RUNTIME: _Call(Bundle, self._push_servers_bundle, _server),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        work = self._work.get(scope["path"]) if scope["type"] == "http" else None
        if work is None:
            await self._app(scope, receive, send)
            return
        try:
            body = [part async for part in Request(scope, receive).stream()]
        except ClientDisconnect:
            return
        found = await run_in_threadpool(self._try, work, scope, body)
        if found is None:
            await self._app(scope, replay(body, receive), send)
        else:
            await _send(send, *found)

    def _try(self, work: _Call, scope: Scope, body: Sequence[bytes]) -> Answer | None:
        """Return the answer: bytes and a file that follows them; None where Flower shall answer."""
        try:
            return work.answer(Request({**scope, "app": self._app, "state": {}}), body)
        except Exception:  # Flower meets the same and says so in its own words
            return None

    def _push_to_file(
        self, body_request: PushObjectRequest, object_content: Sequence[memoryview], state: LinkState
    ) -> Any:
        store, size = state.object_store, sum(map(len, object_content))
        if not isinstance(store, FileObjectStore) or not self._running(state, body_request.run_id):
            raise ValueError("Flower answers this")
        content = IN_FILE if store.bring(body_request.object_id, object_content) else b"".join(object_content)
        stored = state.store_object(
            body_request.run_id, body_request.session_id, body_request.object_id, content
        )
        if stored:
            state.store_traffic(body_request.run_id, bytes_sent=0, bytes_recv=size)
        return PushObjectResponse(stored=stored)

    def _pull_from_file(
        self, body_request: PullObjectRequest, state: LinkState
    ) -> Answer | PullObjectResponse:
        store = state.object_store
        path = store.file(body_request.object_id) if isinstance(store, FileObjectStore) else None
        if path is None or not self._running(state, body_request.run_id):
            return fleet_handlers.pull_object(request=body_request, state=state)
        size = path.stat().st_size
        state.store_traffic(body_request.run_id, bytes_sent=size, bytes_recv=0)
        facts = PullObjectResponse(object_found=True, object_available=True)
        return before_field(facts, "object_content", size), path

    def _push_bundle(self, body_request: Any, state: LinkState) -> Any:
        """Take a client's small objects, as Flower's handler takes each."""
        (run_id,) = {request.run_id for request in body_request.requests}
        if not self._running(state, run_id):
            raise ValueError("Flower answers this")
        stored = store_together(state, run_id, body_request)
        pairs = zip(body_request.requests, stored, strict=True)
        if size := sum(len(request.object_content) for request, accepted in pairs if accepted):
            state.store_traffic(run_id, bytes_sent=0, bytes_recv=size)
        return BundleResponse(stored=stored)

    @staticmethod
    def _push_servers_bundle(body_request: Any, state: LinkState, task: Any) -> Any:
        """Take the server's small objects, as Flower's handler takes each."""
        if body_request.node.node_id != SUPERLINK_NODE_ID:
            raise ValueError("Flower answers this")
        return BundleResponse(stored=store_together(state, task.run_id, body_request))

    def _running(self, state: LinkState, run_id: int) -> bool:
        """Return whether a run is going on, or was less than a second ago: a query takes five statements."""
        if monotonic() - self._going_on.get(run_id, float("-inf")) < _FRESH_S:
            return True
        if check_abort(run_id, _ENDED, state):
            return False
        self._going_on[run_id] = monotonic()
        return True


@dataclass(frozen=True)
class _Call:
    """One of the calls."""

    kind: type[Any]
    """Its message."""
    handle: Callable[..., Any]
    """Returns Flower's answer, or bytes and a file."""
    check: Callable[[Request, Any], dict[str, Any]]
    """Raises where Flower would not let the caller in; returns what the handler needs."""
    aside: str = ""
    """A field that is not parsed, which would copy it twice, but handed to the handler as it lies."""

    def answer(self, request: Request, parts: Sequence[bytes]) -> Answer:
        if request.headers.get("content-type") != PROTOBUF_MEDIA_TYPE:
            raise ValueError("not what Flower's clients send")
        given: dict[str, Any] = {}
        if self.aside:
            body, given[self.aside] = split(parts, self.kind, self.aside)
        else:
            body = b"".join(parts)
        body_request = self.kind.FromString(body)
        result = self.handle(body_request, **given, **self.check(request, body_request))
        return result if isinstance(result, tuple) else (result.SerializeToString(), None)


def contract() -> Iterator[tuple[Callable[..., Any], tuple[None, ...], tuple[str, ...]]]:
    """Yield each of Flower's functions that is called here, with its positional and its named arguments."""
    needed: dict[_Check, tuple[str, ...]] = {
        _client: ("state",),
        _client_at: ("state", "store"),
        _server: ("state", "task"),
    }
    for path, check in _FLOWERS.items():
        yield FastPath(None)._work[path].handle, (None,), needed[check]
    yield fleet_handlers.pull_object, (), ("request", "state")
    yield authenticate_node, (None,), ()
    yield authenticate_task, (None,) * 3, ()
    yield get_linkstate, (None,), ()
    yield check_abort, (None,) * 3, ()
    yield LinkState.store_object, (None,) * 5, ()
    yield LinkState.store_traffic, (None,) * 2, ("bytes_sent", "bytes_recv")


def _client(request: Request, body_request: Any) -> dict[str, Any]:
    """Check a client's signature and number."""
    request.state.protobuf_request = body_request
    authenticate_node(request)
    return {"state": get_linkstate(request)}


def _client_at(request: Request, body_request: Any) -> dict[str, Any]:
    """Check as ``_client``, for handlers that want the store beside the state."""
    found = _client(request, body_request)
    return found | {"store": found["state"].object_store}


def _server(request: Request, body_request: Any) -> dict[str, Any]:
    """Check the token of the process that is the run's ServerApp."""
    state = get_linkstate(request)
    return {"state": state, "task": authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), state)}


_Check = Callable[[Request, Any], dict[str, Any]]
_FLOWERS: Mapping[str, _Check] = {
    "/v1/fleet/pull-messages": _client_at,
    "/v1/fleet/push-messages": _client,
    "/v1/fleet/confirm-message-received": _client_at,
    "/v1/fleet/send-node-heartbeat": _client,
    "/v1/runtime/push-object": _server,
    "/v1/runtime/pull-object": _server,
    "/v1/runtime/pull-messages": _server,
    "/v1/runtime/push-messages": _server,
    "/v1/runtime/confirm-message-received": _server,
    "/v1/runtime/get-nodes": _server,
}
"""Calls that Flower's own handlers answer, and how the caller is checked."""


def _flowers_call(path: str, check: _Check) -> _Call:
    side, name = path.split("/")[2:]
    handlers = fleet_handlers if side == "fleet" else runtime_handlers
    return _Call(PROTOBUF_REQUEST_TYPES["POST", path], getattr(handlers, name.replace("-", "_")), check)


async def _send(send: Send, start: bytes, path: Path | None) -> None:
    """Answer with bytes and a file; reading a file that was just written does not wait for a disk."""
    size = path.stat().st_size if path else 0
    headers = [
        (b"content-type", PROTOBUF_MEDIA_TYPE.encode()),
        (b"content-length", str(len(start) + size).encode()),
    ]
    with path.open("rb", buffering=0) if path else BytesIO() as file:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": start, "more_body": bool(size)})
        while size:
            if not (chunk := file.read(min(size, _CHUNK))):
                raise OSError(f"{path}: it ends early")
            size -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": bool(size)})
