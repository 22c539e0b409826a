"""The server as strangers meet it: real processes, real TLS, raw bytes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    ListRunsResponse,
    StartRunRequest,
    StartRunResponse,
)
from flwr.proto.fab_pb2 import Fab

from fedvision.deployment.certificates import make
from fedvision.deployment.run_manifest import build_fab
from fedvision.deployment.transport import internals_superlink
from tests.deployment.server.machines import free_ports
from tests.deployment.server.processes import (
    PULL,
    Running,
    control,
    eventually,
    nodes,
    read_to_end,
    request,
    secured,
    send_request,
    signed,
    status,
    superlink,
)

BODY = 100_000
PUSH = internals_superlink.PUSH_OBJECT


@pytest.fixture(scope="module")
def server(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = {"header_seconds": 3, "idle_seconds": 2, "body": BODY, "peer_connections": 20, "body_rate": 1e6}
    with superlink(pki, tmp_path_factory.mktemp("server"), **limits) as running:
        yield running


def test_only_health_is_open_to_strangers(pki: Path, server: Running) -> None:
    answer = send_request(secured(pki, server.public), request("GET", "/health"))
    assert status(answer) == 200
    assert b"\r\ndate: " in answer
    assert b"uvicorn" not in answer


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/v1/responses",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "//v1/control/list-nodes",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/%66leet/pull-messages",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/",
        "/v1/fleet/no-such-call",
        "/V1/Control/list-nodes",
        "/health/../docs",
        "http://127.0.0.1:8000/v1/control/list-nodes",
    ],
)
def test_no_path_leads_a_stranger_or_a_client_past_the_clients_calls(
    pki: Path, server: Running, method: str, path: str
) -> None:
    answer = send_request(secured(pki, server.public), request(method, path, *signed(pki, "north")))
    assert status(answer) == 403
    assert b"only clients' calls are served on this port" in answer


def test_no_header_makes_a_request_internal(pki: Path, server: Running) -> None:
    forged = [
        "x-forwarded-for: 127.0.0.1",
        "x-real-ip: 127.0.0.1",
        "forwarded: for=127.0.0.1;host=127.0.0.1",
        f"x-forwarded-host: 127.0.0.1:{server.private}",
        f"x-forwarded-port: {server.private}",
        "x-original-url: /v1/control/list-nodes",
        "x-http-method-override: POST",
    ]
    for path in ("/v1/control/list-nodes", "/docs"):
        answer = send_request(secured(pki, server.public), request("POST", path, *forged))
        assert status(answer) == 403
        assert b"only clients' calls are served on this port" in answer
    call = request("POST", "/v1/control/list-nodes").replace(
        b"host: localhost", f"host: 127.0.0.1:{server.private}".encode()
    )
    assert status(send_request(secured(pki, server.public), call)) == 403


def test_a_websocket_is_refused(pki: Path, server: Running) -> None:
    upgrade = [
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    upgrade_request = request("GET", "/docs", *upgrade).replace(b"connection: close", b"connection: upgrade")
    for _ in range(5):
        answer = send_request(secured(pki, server.public), upgrade_request)
        assert status(answer) == 403
        assert b"only clients' calls are served on this port" in answer
    assert server.log.read_text().count("127.0.0.1: Unsupported upgrade request.") == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [("list-nodes", ListNodesRequest()), ("start-run", StartRunRequest())],
    ids=["list-nodes", "start-run"],
)
def test_the_control_api_answers_inside_only(
    pki: Path, server: Running, call: str, message: ListNodesRequest
) -> None:
    assert control(pki, server.public, call, message.SerializeToString()).status_code == 403
    inside = control(pki, server.private, call, message.SerializeToString())
    # An empty run is no run, but inside it is Flower that refuses it.
    assert inside.status_code == (200 if call == "list-nodes" else inside.status_code)
    assert b"only clients' calls" not in inside.content


def test_a_run_that_would_start_inside_does_not_start_from_outside(pki: Path, server: Running) -> None:
    request = StartRunRequest(fab=Fab(content=build_fab())).SerializeToString()

    def runs() -> set[int]:
        answer = control(pki, server.private, "list-runs", ListRunsRequest().SerializeToString())
        return set(ListRunsResponse.FromString(answer.content).run_dict)

    before = runs()
    refused = control(pki, server.public, "start-run", request)
    assert refused.status_code == 403
    assert refused.json()["detail"] == "only clients' calls are served on this port"
    assert runs() == before
    started = StartRunResponse.FromString(control(pki, server.private, "start-run", request).content)
    assert runs() - before == {started.run_id}
    assert "only clients' calls are served on this port" in server.log.read_text()


def test_the_private_side_is_not_there_for_other_addresses(server: Running) -> None:
    for address in {"127.0.0.2", *_own_addresses()}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, server.private), timeout=5)
        socket.create_connection((address, server.public), timeout=5).close()


def _own_addresses() -> set[str]:
    """Return this machine's addresses towards the world, if it has any: nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return set()
        return {probe.getsockname()[0]} - {"127.0.0.1"}


def test_plain_text_gets_no_answer(server: Running) -> None:
    plain = socket.create_connection(("127.0.0.1", server.public), timeout=10)
    assert status(send_request(plain, request("GET", "/health"))) == 0


def test_calls_without_a_known_key_are_refused_before_their_body_is_read(
    pki: Path, strangers: Path, server: Running
) -> None:
    huge = "content-length: 16000000"
    for headers in ([], signed(strangers, "stranger"), ["flwr-public-key: !!!"]):
        answer = send_request(secured(pki, server.public), request("POST", PULL, huge, *headers))
        assert status(answer) == 401
        assert b"The server does not know this client's key" in answer


def test_a_known_key_with_anothers_signature_is_refused(pki: Path, strangers: Path, server: Running) -> None:
    known, stranger = signed(pki, "north"), signed(strangers, "stranger")
    name = internals_superlink.PUBLIC_KEY_HEADER.decode()
    mixed = [line for line in known if line.lower().startswith(name)]
    mixed += [line for line in stranger if not line.lower().startswith(name)]
    answer = send_request(secured(pki, server.public), request("POST", internals_superlink.GET_RUN, *mixed))
    assert status(answer) == 401
    assert b"Invalid SuperNode authentication" in answer


def test_a_body_that_is_too_large_is_refused_declared_or_not(pki: Path, server: Running) -> None:
    headers = signed(pki, "north")
    declared = request("POST", PUSH, f"content-length: {BODY + 1}", *headers)
    keep_alive = declared.replace(b"connection: close", b"connection: keep-alive")
    answer = send_request(secured(pki, server.public), keep_alive)
    assert status(answer) == 413
    assert f"a body of more than {BODY} bytes".encode() in answer
    # What follows of the body is nobody's: the connection must end.
    assert b"\r\nconnection: close\r\n" in answer
    chunk = b"%x\r\n" % 1000 + b"x" * 1000 + b"\r\n"
    chunked = request("POST", PUSH, "transfer-encoding: chunked", *headers) + chunk * (BODY // 1000 + 1)
    assert status(send_request(secured(pki, server.public), chunked)) == 413
    # One byte less is Flower's to judge.
    fits = send_request(secured(pki, server.public), request("POST", PUSH, *headers, body=b"x" * BODY))
    assert status(fits) not in (0, 413)


def test_health_takes_no_body(pki: Path, server: Running) -> None:
    for header in ("content-length: 5", "transfer-encoding: chunked"):
        assert status(send_request(secured(pki, server.public), request("GET", "/health", header))) == 413


@pytest.mark.slow
def test_whoever_is_slow_is_hung_up_on(pki: Path, server: Running) -> None:
    silent = socket.create_connection(("127.0.0.1", server.public), timeout=10)
    mute = secured(pki, server.public)
    dripping = secured(pki, server.public)
    began = time.monotonic()
    for byte in b"GET /health HTTP/1.1\r\nx: ":
        try:
            dripping.sendall(bytes([byte]))
        except OSError:
            break
        time.sleep(0.16)
    for connection in (silent, mute, dripping):
        with connection:
            assert read_to_end(connection) == b""
    assert time.monotonic() - began < 30
    assert eventually(lambda: "no whole request within 3 seconds" in server.log.read_text())


@pytest.mark.slow
def test_a_body_that_stops_is_refused(pki: Path, server: Running) -> None:
    begun = request("POST", PULL, "content-length: 50000", *signed(pki, "north"), body=b"x" * 10)
    answer = send_request(secured(pki, server.public), begun)
    assert status(answer) == 408
    assert b"no byte of the body in 2 seconds" in answer


def test_one_peer_cannot_take_all_connections(pki: Path, server: Running) -> None:
    held = [socket.create_connection(("127.0.0.1", server.public), timeout=10) for _ in range(20)]
    with pytest.raises(OSError):  # noqa: PT011 - reset or end of file, as the moment will have it
        secured(pki, server.public)
    for connection in held:
        connection.close()
    assert eventually(lambda: _healthy(pki, server))
    assert "it has 20 open connections already" in server.log.read_text()


def _healthy(pki: Path, server: Running) -> bool:
    try:
        return status(send_request(secured(pki, server.public), request("GET", "/health"))) == 200
    except OSError:
        return False


def supernode(pki: Path, keys: Path, client: str, server: Running) -> subprocess.Popen[str]:
    """Start Flower's own client."""
    port = str(free_ports(1)[0])
    command = [str(Path(sys.executable).parent / "flower-supernode"), "--port", port]
    command += ["--root-certificates", str(pki / "ca.crt"), "--superlink", f"127.0.0.1:{server.public}"]
    command += ["--auth-supernode-private-key", str(keys / "clients" / client / "client.key")]
    command += ["--isolation", "process"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_an_unknown_key_is_logged_on_both_sides(pki: Path, strangers: Path, server: Running) -> None:
    output, _ = supernode(pki, strangers, "stranger", server).communicate(timeout=240)
    assert "The server does not know this client's key; send the .pub file" in " ".join(output.split())
    public = strangers / "server/clients/stranger.pub"
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", str(public)], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    lines = [line for line in server.log.read_text().splitlines() if "does not know" in line]
    # The log keeps the first of a minute; an earlier test may have been the first.
    assert lines
    assert fingerprint in lines[0] or "no key" in lines[0]


@pytest.mark.slow
def test_a_client_joins_while_its_key_is_in_the_folder(pki: Path, server: Running, tmp_path: Path) -> None:
    key = _key_of(tmp_path, "east")
    (server.clients / "east.pub").write_bytes(key)
    assert eventually(lambda: nodes(pki, server).get("east") == "registered")
    process = supernode(pki, tmp_path, "east", server)
    try:
        assert eventually(lambda: nodes(pki, server).get("east") == "online")
        assert nodes(pki, server)["north"] == "registered"
        (server.clients / "east.pub").unlink()
        assert eventually(lambda: nodes(pki, server).get("east") != "online")
        # Refused from now on, it ends by itself.
        process.communicate(timeout=240)
    finally:
        process.kill()
    assert "client east is shut out" in server.log.read_text()


@pytest.mark.slow
def test_added_and_removed_keys(pki: Path, server: Running, tmp_path: Path) -> None:
    """A key that is added later is let in and a removed one does not return."""
    key = _key_of(tmp_path, "late")
    (server.clients / "late.pub").write_bytes(key)
    assert eventually(lambda: nodes(pki, server).get("late") == "registered")
    (server.clients / "late.pub").unlink()
    assert eventually(lambda: nodes(pki, server)["late"] == "unregistered")
    (server.clients / "again.pub").write_bytes(key)
    assert eventually(lambda: "this key was removed once" in server.log.read_text())
    assert "again" not in nodes(pki, server)


def _key_of(folder: Path, client: str) -> bytes:
    """Make a client of no other test's, in a folder, and return its public key."""
    make(folder, hosts=["localhost"], clients=[client])
    return (folder / "server/clients" / f"{client}.pub").read_bytes()


def test_the_database_is_the_owners_alone(server: Running) -> None:
    assert server.place.database.stat().st_mode & 0o077 == 0
