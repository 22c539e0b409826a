"""Objects past Flower's middleware: the same bytes as Flower's, and errors in Flower's words."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from hypothesis import given
from hypothesis import strategies as st

from fedvision.deployment.transport import internals_fast_path as fast_path
from fedvision.deployment.transport.blob_store import IN_FILE, SMALL
from fedvision.deployment.transport.internals_bundle import FLEET, RUNTIME, Bundle, before_field, split
from fedvision.deployment.transport.internals_fast_path import FastPath
from fedvision.deployment.transport.internals_store import FileObjectStore
from fedvision.deployment.transport.internals_superlink import keys, register_key, signed_headers, superlink
from tests.deployment.transport.links import close
from tests.deployment.transport.test_internals_store import message


def request(content: bytes) -> PushObjectRequest:
    return PushObjectRequest(
        node=Node(node_id=2**63 + 5),
        run_id=2**64 - 1,
        object_id="a" * 64,
        object_content=content,
        session_id="s",
    )


@given(st.binary(min_size=1, max_size=600), st.lists(st.integers(100, 900), max_size=5))
def test_a_field_is_set_aside_wherever_the_body_was_cut(content: bytes, cuts: list[int]) -> None:
    body = request(content).SerializeToString()
    edges = [0, *sorted({min(cut, len(body)) for cut in cuts}), len(body)]
    parts = [body[start:stop] for start, stop in itertools.pairwise(edges)]
    rest, field = split(parts, PushObjectRequest, "object_content")
    assert b"".join(field) == content
    parsed = PushObjectRequest.FromString(rest)
    assert parsed == request(b"")
    assert parsed.session_id == "s", "what stands behind the field too"


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [request(b"x" * 50).SerializeToString()[:-40]],
        [request(b"x" * 50).SerializeToString()[:20], request(b"x" * 50).SerializeToString()[20:]],
        [b"\xff" * 20],
        [b"\x0d\x00\x00\x00\x00"],
        [request(b"").SerializeToString()],
    ],
    ids=["nothing", "cut off", "late", "endless number", "another kind of field", "no such field"],
)
def test_what_is_no_such_message_is_left_to_flower(parts: Sequence[bytes]) -> None:
    with pytest.raises(ValueError, match=r"message|field"):
        split(parts, PushObjectRequest, "object_content")


@pytest.mark.parametrize("size", [1, 127, 128, 70_000, 3_000_000])
def test_the_answer_is_protobufs_to_the_byte(size: int) -> None:
    content = b"\x07" * size
    facts = PullObjectResponse(object_found=True, object_available=True)
    whole = PullObjectResponse(object_found=True, object_available=True, object_content=content)
    assert before_field(facts, "object_content", size) + content == whole.SerializeToString()


class Sent:
    """An ASGI ``send`` that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


class Flower:
    """An application that records its requests."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            parts, more = [], True
            while more:
                message = await receive()
                parts.append(message["body"])
                more = message["more_body"]
            self.got.append(b"".join(parts))


def send_request(
    app: Any, path: str, parts: list[bytes], headers: Sequence[tuple[bytes, bytes]] = ()
) -> Sent:
    sent, waiting = Sent(), list(parts)

    async def receive() -> Any:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    scope = {
        "type": "http",
        "path": path,
        "method": "POST",
        "headers": [(b"content-type", b"application/protobuf"), *headers],
    }
    asyncio.run(app(scope, receive, sent))
    return sent


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/push-object",
        "/v1/fleet/pull-object",
        "/v1/runtime/push-object",
        "/v1/fleet/pull-messages",
        FLEET,
        RUNTIME,
    ],
)
def test_what_cannot_be_served_goes_to_flower_whole(path: str) -> None:
    flower = Flower()
    parts = [b"nonsense", b" in ", b"parts"]
    sent = send_request(FastPath(flower), path, parts)
    assert flower.got == [b"nonsense in parts"]
    assert sent.messages == []


@pytest.mark.parametrize(
    ("path", "handler", "message"),
    [
        ("/v1/fleet/pull-object", "_pull_from_file", PullObjectRequest(run_id=1, object_id="a" * 64)),
        (FLEET, "_push_bundle", Bundle(requests=[PushObjectRequest(run_id=1, object_id="a" * 64)])),
        (RUNTIME, "_push_servers_bundle", Bundle(requests=[PushObjectRequest(run_id=1, object_id="a" * 64)])),
    ],
)
def test_an_unsigned_call_is_left_to_flower(
    path: str, handler: str, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flower, body = Flower(), message.SerializeToString()
    factory = SimpleNamespace(state=lambda: None)
    flower.state = SimpleNamespace(linkstate_factory=factory)  # type: ignore[attr-defined]
    monkeypatch.setattr(FastPath, handler, lambda *_, **__: pytest.fail("it was let in"))
    send_request(FastPath(flower), path, [body])
    assert flower.got == [body]


def test_a_file_leaves_in_chunks(tmp_path: Path) -> None:
    path, sent = tmp_path / "f", Sent()
    path.write_bytes(bytes(range(256)) * 4096)
    asyncio.run(fast_path._send(sent, b"start", path))
    assert sent.body == b"start" + path.read_bytes()
    assert max(len(message.get("body", b"")) for message in sent.messages) <= fast_path._CHUNK
    assert dict(sent.messages[0]["headers"])[b"content-length"] == str(len(sent.body)).encode()
    assert [message.get("more_body", False) for message in sent.messages[1:]][-1] is False


class State:
    """A SuperLink's state that records calls for objects."""

    def __init__(self, folder: Path) -> None:
        self.object_store = FileObjectStore(folder)
        self.object_store.open()
        self.stored, self.calls = True, list[tuple[Any, ...]]()

    def store_object(self, *given: Any) -> bool:
        self.calls.append(given)
        return self.stored

    def store_traffic(self, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        self.calls.append((run_id, bytes_sent, bytes_recv))


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Runs that are over."""
    runs: set[int] = set()
    monkeypatch.setattr(fast_path, "check_abort", lambda run_id, *_: "over" if run_id in runs else None)
    return runs


def test_an_object_is_stored_for_the_session_under_which_it_came(tmp_path: Path, over: set[int]) -> None:
    tree, objects = message(1)
    name, content = next((name, content) for name, content in objects.items() if len(content) > SMALL)
    parts = [memoryview(content[:100_000]), memoryview(content[100_000:])]
    pushed = PushObjectRequest(run_id=7, object_id=name, session_id="s")
    state, app = State(tmp_path / "objects"), FastPath(None)
    state.object_store.preregister(7, tree)
    over.add(7)
    with pytest.raises(ValueError, match="Flower answers"):
        app._push_to_file(pushed, parts, state)  # type: ignore[arg-type]
    assert (state.calls, state.object_store.blob_store.holds(name)) == ([], False)
    over.clear()
    assert app._push_to_file(pushed, parts, state).stored  # type: ignore[arg-type]
    assert state.calls == [(7, "s", name, IN_FILE), (7, 0, len(content))]
    assert state.object_store.blob_store.holds(name)
    state.stored, state.calls = False, []
    small = next(name for name, content in objects.items() if len(content) < SMALL)
    pushed = PushObjectRequest(run_id=7, object_id=small, session_id="gone")
    assert not app._push_to_file(pushed, [memoryview(objects[small])], state).stored  # type: ignore[arg-type]
    assert state.calls == [(7, "gone", small, objects[small])], "what is not stored is no traffic"
    state.object_store.close()


def test_a_file_is_given_while_its_run_goes_on(
    tmp_path: Path, over: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, objects = message(1)
    name, content = next((name, content) for name, content in objects.items() if len(content) > SMALL)
    state = State(tmp_path / "objects")
    state.object_store.preregister(7, tree)
    state.object_store.put(name, content)
    monkeypatch.setattr(fast_path.fleet_handlers, "pull_object", lambda request, state: "Flower's")
    pulled = PullObjectRequest(run_id=7, object_id=name)
    start, path = FastPath(None)._pull_from_file(pulled, state)  # type: ignore[arg-type, misc]
    assert path
    whole = PullObjectResponse(object_found=True, object_available=True, object_content=content)
    assert start + path.read_bytes() == whole.SerializeToString()
    assert state.calls == [(7, len(content), 0)]
    over.add(7)
    assert FastPath(None)._pull_from_file(pulled, state) == "Flower's"  # type: ignore[arg-type]
    assert len(state.calls) == 1
    state.object_store.close()


def test_the_run_state_is_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    now = [100.0]
    monkeypatch.setattr(fast_path, "monotonic", lambda: now[0])

    def check(run_id: int, ended: object, state: object) -> str | None:
        checked.append(run_id)
        return "over" if run_id == 2 else None

    monkeypatch.setattr(fast_path, "check_abort", check)
    app = FastPath(None)
    state: Any = None
    assert app._running(state, 1)
    assert app._running(state, 1)
    assert not app._running(state, 2)
    assert not app._running(state, 2)
    now[0] += 1.5
    assert app._running(state, 1)
    assert checked == [1, 2, 2, 1]


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")
def test_the_handlers_of_flower_answer_a_signed_call(tmp_path: Path) -> None:
    """A real SuperLink's state, and none of its middleware: what is not answered here reaches ``Flower``."""
    app, state = superlink(host="", port=1, database=tmp_path / "sl.db", tls=None, secret=b"s")
    key = ec.generate_private_key(ec.SECP384R1())
    register_key(state, public_key_to_bytes(key.public_key()), "north")
    (registered,) = keys(state).values()
    assert state.activate_node(registered.node_id, 25.0)
    flower, node = Flower(), Node(node_id=registered.node_id)
    flower.state = app.state  # type: ignore[attr-defined]
    headers = [(name.lower().encode(), value.encode()) for name, value in signed_headers(key).items()]

    def answer(path: str, call: Any) -> bytes:
        return send_request(FastPath(flower), path, [call.SerializeToString()], headers).body

    beat = SendNodeHeartbeatRequest(node=node, heartbeat_interval=25.0)
    reply = answer("/v1/fleet/send-node-heartbeat", beat)
    assert SendNodeHeartbeatResponse.FromString(reply).success
    assert answer("/v1/fleet/pull-messages", PullMessagesRequest(node=node)) == b""
    assert flower.got == []
    beat.node.node_id += 1
    answer("/v1/fleet/send-node-heartbeat", beat)
    assert flower.got == [beat.SerializeToString()], "a call in another node's name is Flower's to refuse"
    close(state)
