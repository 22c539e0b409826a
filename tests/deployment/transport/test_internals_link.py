"""Contract tests of the non-public names for talking to a SuperLink, against a real one with TLS and keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.proto.message_pb2 import PushObjectRequest

from fedvision.deployment.certificates import make
from fedvision.deployment.run_manifest import RunManifest, build_fab
from fedvision.deployment.server.options import SuperlinkOptions
from fedvision.deployment.server.superlink_process import SuperlinkProcess
from fedvision.deployment.transport import internals_bundle, internals_fleet, internals_run, message_format
from fedvision.deployment.transport.blob_store import BlobStore
from fedvision.deployment.transport.internals_fleet import FleetLink
from fedvision.deployment.transport.internals_message_objects import (
    IncomingMessage,
    LinkDown,
    LinkRefused,
    NotDeliveredYet,
    RunEnded,
    TensorObject,
    pack_message,
    pack_tensors,
    reply_to,
)
from fedvision.deployment.transport.internals_run import RunLink
from fedvision.flower import internals
from fedvision.flower.internals import TensorArray
from tests.experiments import tiny

FACTS = RunManifest(run="r", experiment=tiny().to_toml(), classes=("a", "b"), image=(8, 8, 1)).to_table()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    make(folder, hosts=["localhost"], clients=["north"])
    return folder


@pytest.fixture(scope="module")
def place(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperlinkOptions]:
    state = tmp_path_factory.mktemp("superlink")
    server = pki / "server"
    requested_place = SuperlinkOptions(
        tls=server, clients=server / "clients", state=state, public="127.0.0.1:0", private="127.0.0.1:0"
    )
    process = SuperlinkProcess(requested_place)
    yield process.open()
    process.stop()


def key(pki: Path) -> EllipticCurvePrivateKey:
    found = load_ssh_private_key((pki / "clients/north/client.key").read_bytes(), None)
    assert isinstance(found, EllipticCurvePrivateKey)
    return found


@pytest.fixture
def client(pki: Path, place: SuperlinkOptions) -> Iterator[FleetLink]:
    link = FleetLink(place.public, key(pki), roots=pki / "ca.crt")
    yield link
    link.close()


@contextmanager
def running(
    place: SuperlinkOptions, client: FleetLink, objects: Path | None = None
) -> Iterator[tuple[RunLink, int]]:
    """Start a run and go online; yield the server's connection and the client's node."""
    server = RunLink(place.private, roots=place.roots, secret=place.secret(), objects=objects)
    node = client.activate()
    run_id = server.start(build_fab(), FACTS)
    try:
        yield server, node
    finally:
        client.deactivate()
        server.stop(run_id)
        server.close()


@pytest.fixture
def run(place: SuperlinkOptions, client: FleetLink) -> Iterator[tuple[RunLink, int]]:
    with running(place, client) as made:
        yield made


def content(value: float) -> RecordDict:
    """Return a model of two pieces as it travels."""
    tensors = {"w": TensorArray(torch.full((message_format.PIECE // 4 + 1000,), value))}
    plain = RecordDict({"arrays": ArrayRecord(tensors)})
    layout = message_format.describe(plain)
    return pack_message(layout, pack_tensors(message_format.TensorSource(plain, layout), layout))


def value(incoming: IncomingMessage) -> float:
    """Fetch a message as soon as it is delivered, and return the one number that its tensor holds."""
    while True:
        try:
            layout = incoming.open()
            blob = bytearray(b"".join(incoming.read(layout)))
            break
        except NotDeliveredYet:
            time.sleep(0.01)
    (number,) = set(message_format.unpack(layout, blob).array_records["arrays"]["w"].numpy().tolist())
    return float(number)


@pytest.mark.slow
def test_a_message_and_its_reply_travel_whole(client: FleetLink, run: tuple[RunLink, int]) -> None:
    server, node = run
    assert server.online() == {node: "north"}
    assert [(info.name, info.status) for info in server.nodes()] == [("north", "online")]
    assert server.beat()
    (sent,) = server.push([Message(content(2.0), node, "train")])
    received = client.receive()
    assert received is not None
    assert client.receive() is None, "a message is given once"
    assert client.run_config(server.run_id) == FACTS
    incoming = client.incoming(received)
    assert value(incoming) == 2.0
    reply = Message(content(3.0), reply_to=incoming.head)
    client.answer(reply, 0.1)
    client.answer(reply, 0.1)  # a client that lost the connection sends it again
    client.confirm(incoming)
    (back,) = server.pull([sent])
    assert (back.head.metadata.src_node_id, back.head.metadata.reply_to_message_id) == (node, sent)
    assert value(back) == 3.0
    server.confirm(back)
    assert [found.head.has_error() for found in server.pull([sent])] == [True], "a reply is given once"
    server.finish("completed", "")
    with pytest.raises(RunEnded):
        client.run_config(server.run_id)


@pytest.mark.long
def test_a_message_that_got_lost_on_its_way_is_given_again(
    client: FleetLink, run: tuple[RunLink, int]
) -> None:
    server, node = run
    server.push([Message(content(2.0), node, "train")])
    lost = client.receive()
    assert lost is not None
    client.beat()
    assert not _soon(client.receive, 2), "who has a message in hand is given no other"
    client.beat(empty_for=30.0)
    assert not _soon(client.receive, 2), "what was given a moment ago may be under way"
    client.beat(empty_for=0.0)
    again = _soon(client.receive)
    assert again is not None
    incoming = client.incoming(again)
    assert value(incoming) == 2.0
    client.answer(reply_to(incoming.head, content(3.0)), 0.1)
    client.beat(empty_for=0.0)
    assert not _soon(client.receive, 2), "what is answered is done"


def _soon(receive: Callable[[], bytes | None], tries: int = 5) -> bytes | None:
    for _ in range(tries):
        if found := receive():
            return found
        time.sleep(0.1)
    return None


def _cut_at_the_second(client: FleetLink, patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Break off a client's second call that sends objects; return those of each call, as they go."""
    pushed: list[list[str]] = []
    send, bulk = client._client._unary_unary, client._bulk.push

    def piece(request: PushObjectRequest, thing: TensorObject) -> bool:
        pushed.append([request.object_id])
        return bulk(request, thing)

    def cut_once(*, path: str, request: Any, **more: Any) -> Any:
        if "push-object" in path:
            pushed.append([one.object_id for one in getattr(request, "requests", (request,))])
            if len(pushed) == 2:
                raise OSError("cut")
        return send(path=path, request=request, **more)

    patch.setattr(client._bulk, "push", piece)
    patch.setattr(client._client, "_unary_unary", cut_once)
    return pushed


@pytest.mark.slow
def test_a_reply_whose_delivery_was_broken_off_is_delivered_to_its_end(
    client: FleetLink, monkeypatch: pytest.MonkeyPatch, run: tuple[RunLink, int]
) -> None:
    server, node = run
    counts: set[int] = set()
    for number in (1.0, 2.0):  # requested twice, answered twice with the same tensors
        (sent,) = server.push([Message(content(number), node, "train")])
        received = client.receive()
        assert received is not None
        sessions: list[str] = []

        def answer(received: bytes = received, **session: Any) -> None:
            client.answer(reply_to(client.incoming(received).head, content(3.0)), 0.1, **session)

        with monkeypatch.context() as patch:
            pushed = _cut_at_the_second(client, patch)
            with pytest.raises(LinkDown, match="cut"):
                answer(keep_session=sessions.append)
            (back,) = server.pull([sent])
            with pytest.raises(NotDeliveredYet):
                list(back.read(back.open()))
            answer(session=sessions[0])
        assert value(back) == 3.0
        assert len(pushed) == 3
        assert set(pushed[1]) <= set(pushed[2])
        assert not set(pushed[0]) & set(pushed[2]), "what had arrived is not sent again"
        counts.add(len(set(pushed[0]) | set(pushed[2])))
        assert len(counts) == 1, "what was sent with another reply is sent with this one, too"
        server.confirm(back)
        client.confirm(client.incoming(received))
    # A client that was killed knows the session alone.
    client._delivered.clear()
    answer(session=sessions[0])


def test_message_is_hidden_until_it_is_complete(client: FleetLink, run: tuple[RunLink, int]) -> None:
    """A message is seen by nobody before the sender has settled what it must."""
    server, node = run

    def settle() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        server.push([Message(content(1.0), node, "train")], settle)
    server.push([Message(content(2.0), node, "train")])
    received = _soon(client.receive)
    assert received is not None
    assert value(client.incoming(received)) == 2.0
    client.confirm(client.incoming(received))


def test_an_error_reply_comes_with_its_head(client: FleetLink, run: tuple[RunLink, int]) -> None:
    server, node = run
    (sent,) = server.push([Message(content(1.0), node, "train")])
    received = client.receive()
    assert received is not None
    head = client.incoming(received).head
    client.answer(
        Message(Error(code=internals.CLIENT_RAISED, reason="client 0, training: no"), reply_to=head), 0.1
    )
    (back,) = server.pull([sent])
    assert back.head.error.reason == "client 0, training: no"
    server.stop(server.run_id)
    server.stop(server.run_id)  # one that is over is left alone
    with pytest.raises(LinkRefused):
        server.beat()


def test_a_killed_node_comes_back_by_a_heartbeat_and_not_by_activation(
    pki: Path, place: SuperlinkOptions, client: FleetLink
) -> None:
    node = client.activate()
    again = FleetLink(place.public, key(pki), roots=pki / "ca.crt")
    with pytest.raises(LinkRefused, match="Failed to activate"):
        again.activate()
    again.node_id = node
    assert again.beat()
    again.node_id = node + 1
    with pytest.raises(LinkRefused):
        again.beat()
    again.close()
    client.deactivate()


def test_strangers_and_wrong_secrets_are_refused(place: SuperlinkOptions, tmp_path: Path) -> None:
    make(tmp_path, hosts=["localhost"], clients=["north"])
    stranger = FleetLink(place.public, key(tmp_path), roots=place.roots)
    with pytest.raises(LinkRefused, match="does not know this client's key"):
        stranger.activate()
    stranger.close()
    fooled = FleetLink(place.public, key(tmp_path), roots=tmp_path / "ca.crt")
    with pytest.raises(LinkDown, match="CERTIFICATE_VERIFY_FAILED"):
        fooled.activate()
    fooled.close()
    thief = RunLink(place.private, roots=place.roots, secret=b"0" * 64)
    with pytest.raises(LinkRefused):
        thief.start(build_fab(), FACTS)
    thief.close()


def test_a_superlink_that_is_away_is_down(pki: Path) -> None:
    link = RunLink("127.0.0.1:9", roots=pki / "ca.crt")
    assert internals_run.silence("127.0.0.1:9", pki / "ca.crt")
    with pytest.raises(LinkDown):
        link.nodes()
    link.close()


@pytest.mark.slow
def test_what_the_server_shares_with_its_superlink_travels_by_name(
    place: SuperlinkOptions, client: FleetLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(place, client, place.objects) as (server, node):
        runtime = server._running()
        sizes: list[int] = []
        together, pull = internals_bundle.push_bundle, runtime.PullObject

        def count(link: Any, path: str, small: Any) -> Any:
            sizes.extend(len(request.object_content) for request in small.requests)
            return together(link, path, small)

        monkeypatch.setattr(internals_bundle, "push_bundle", count)
        (sent,) = server.push([Message(content(5.0), node, "train")])
        assert len(sizes) >= 6
        assert max(sizes) < 10_000, "pieces are named, not sent"
        incoming = client.incoming(client.receive() or b"")
        assert value(incoming) == 5.0
        client.answer(Message(content(6.0), reply_to=incoming.head), 0.1)
        client.confirm(incoming)
        monkeypatch.setattr(runtime, "PullObject", lambda request: pytest.fail("it is a file"))
        (back,) = server.pull([sent])
        assert value(back) == 6.0
        monkeypatch.setattr(runtime, "PullObject", pull)
        server.confirm(back)
        assert not list(place.objects.glob("?" * 64)), "nothing is left when all is confirmed"


def test_a_folder_that_the_superlink_does_not_use_is_no_hindrance(
    place: SuperlinkOptions, client: FleetLink, tmp_path: Path
) -> None:
    BlobStore(tmp_path / "stale").open()
    with running(place, client, tmp_path / "stale") as (server, node):
        server.push([Message(content(7.0), node, "train")])
        incoming = client.incoming(client.receive() or b"")
        assert value(incoming) == 7.0
        client.confirm(incoming)


def test_small_objects_that_are_false_are_refused_and_the_others_kept(
    client: FleetLink, monkeypatch: pytest.MonkeyPatch, run: tuple[RunLink, int]
) -> None:
    server, node = run
    (sent,) = server.push([Message(content(2.0), node, "train")])
    received = client.receive()
    assert received is not None
    outcomes: list[list[bool]] = []
    together = internals_bundle.push_bundle

    def forge(link: Any, path: str, small: Any) -> Any:
        true = small.requests[0].object_content
        small.requests[0].object_content = true[:-1] + b"?"
        outcomes.append(list(together(link, path, small)))
        small.requests[0].object_content = true
        outcomes.append(list(together(link, path, small)))
        return [True] * len(small.requests)

    monkeypatch.setattr(internals_bundle, "push_bundle", forge)
    client.answer(reply_to(client.incoming(received).head, content(3.0)), 0.1)
    assert outcomes[0] == [False] + [True] * (len(outcomes[0]) - 1)
    assert outcomes[1] == [True] + [False] * (len(outcomes[0]) - 1), "the others are no longer waited for"
    (back,) = server.pull([sent])
    assert value(back) == 3.0


@pytest.mark.slow
def test_a_superlink_without_bundles_gets_objects_one_by_one(
    client: FleetLink, monkeypatch: pytest.MonkeyPatch, run: tuple[RunLink, int]
) -> None:
    monkeypatch.setattr(internals_fleet, "FLEET", "/v1/fleet/unknown")
    monkeypatch.setattr(internals_run, "RUNTIME", "/v1/runtime/unknown")
    server, node = run
    (sent,) = server.push([Message(content(2.0), node, "train")])
    received = client.receive()
    assert received is not None
    incoming = client.incoming(received)
    assert value(incoming) == 2.0
    client.answer(reply_to(incoming.head, content(3.0)), 0.1)
    (back,) = server.pull([sent])
    assert value(back) == 3.0
