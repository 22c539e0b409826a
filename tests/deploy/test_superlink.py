"""The server as strangers meet it: real processes, real TLS, raw bytes."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    ListRunsRequest,
    ListRunsResponse,
    StartRunRequest,
    StartRunResponse,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedvision.deploy import superlink as module
from fedvision.deploy.contract import bundle
from fedvision.errors import ConfigError
from fedvision.flower import internals
from tests.deploy.moments import make_at
from tests.deploy.processes import Running, eventually, hear, request, say, secured, status, superlink

BODY = 100_000
PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def server(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = ["header_seconds=3", "idle_seconds=2", f"body={BODY}", "peer_connections=20", "body_rate=1e6"]
    options = [option for limit in limits for option in ("--limit", limit)]
    folder = tmp_path_factory.mktemp("server")
    with superlink(pki, folder, "--database", str(folder / "sl.db"), *options) as running:
        yield running


def signed(pki: Path, client: str) -> list[str]:
    key = load_ssh_private_key((pki / "clients" / client / "client.key").read_bytes(), None)
    headers = internals.signed_headers(key) | {"content-type": PROTOBUF_MEDIA_TYPE}  # type: ignore[arg-type]
    return [f"{name}: {value}" for name, value in headers.items()]


def control(pki: Path, port: int, call: str, message: bytes) -> httpx.Response:
    return httpx.post(
        f"https://127.0.0.1:{port}/v1/control/{call}",
        content=message,
        headers={"content-type": PROTOBUF_MEDIA_TYPE},
        verify=ssl.create_default_context(cafile=pki / "ca.crt"),
        timeout=60,
    )


def nodes(pki: Path, server: Running) -> dict[str, str]:
    """Return name -> status of every client, as the administrator sees them."""
    answer = control(pki, server.private, "list-nodes", ListNodesRequest().SerializeToString())
    assert answer.status_code == 200
    return {node.name: node.status for node in ListNodesResponse.FromString(answer.content).nodes_info}


def test_health_is_all_that_a_stranger_may_ask(pki: Path, server: Running) -> None:
    answer = say(secured(pki, server.public), request("GET", "/health"))
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
    answer = say(secured(pki, server.public), request(method, path, *signed(pki, "north")))
    assert status(answer) == 403
    assert b"only clients' calls are served on this port" in answer


def test_nothing_that_a_request_says_of_itself_makes_it_an_inside_one(pki: Path, server: Running) -> None:
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
        answer = say(secured(pki, server.public), request("POST", path, *forged))
        assert status(answer) == 403
        assert b"only clients' calls are served on this port" in answer
    call = request("POST", "/v1/control/list-nodes").replace(
        b"host: localhost", f"host: 127.0.0.1:{server.private}".encode()
    )
    assert status(say(secured(pki, server.public), call)) == 403


def test_a_websocket_is_refused(pki: Path, server: Running) -> None:
    upgrade = [
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    asked = request("GET", "/docs", *upgrade).replace(b"connection: close", b"connection: upgrade")
    answer = say(secured(pki, server.public), asked)
    assert status(answer) == 403
    assert b"only clients' calls are served on this port" in answer


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
    # An empty run is no run, but inside it is Flower that says so.
    assert inside.status_code == (200 if call == "list-nodes" else inside.status_code)
    assert b"only clients' calls" not in inside.content


def test_a_run_that_would_start_inside_does_not_start_from_outside(pki: Path, server: Running) -> None:
    request = StartRunRequest(fab=Fab(content=bundle())).SerializeToString()

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
    assert status(say(plain, request("GET", "/health"))) == 0


def test_calls_without_a_known_key_are_refused_before_their_body_is_read(
    pki: Path, strangers: Path, server: Running
) -> None:
    huge = "content-length: 16000000"
    for headers in ([], signed(strangers, "stranger"), ["flwr-public-key: !!!"]):
        answer = say(secured(pki, server.public), request("POST", PULL, huge, *headers))
        assert status(answer) == 401
        assert b"The server does not know this client's key" in answer


def test_a_known_key_with_anothers_signature_is_refused_by_flower(
    pki: Path, strangers: Path, server: Running
) -> None:
    known, stranger = signed(pki, "north"), signed(strangers, "stranger")
    name = internals.PUBLIC_KEY_HEADER.decode()
    mixed = [line for line in known if line.lower().startswith(name)]
    mixed += [line for line in stranger if not line.lower().startswith(name)]
    answer = say(secured(pki, server.public), request("POST", internals.ASK_RUN, *mixed))
    assert status(answer) == 401
    assert b"Invalid SuperNode authentication" in answer


def test_a_body_that_is_too_large_is_refused_declared_or_not(pki: Path, server: Running) -> None:
    headers = signed(pki, "north")
    declared = request("POST", PULL, f"content-length: {BODY + 1}", *headers)
    kept = declared.replace(b"connection: close", b"connection: keep-alive")
    answer = say(secured(pki, server.public), kept)
    assert status(answer) == 413
    assert f"a body of more than {BODY} bytes".encode() in answer
    # What follows of the body is nobody's: the connection must end.
    assert b"\r\nconnection: close\r\n" in answer
    chunk = b"%x\r\n" % 1000 + b"x" * 1000 + b"\r\n"
    chunked = request("POST", PULL, "transfer-encoding: chunked", *headers) + chunk * (BODY // 1000 + 1)
    assert status(say(secured(pki, server.public), chunked)) == 413
    # One byte less is Flower's to judge.
    fits = say(secured(pki, server.public), request("POST", PULL, *headers, body=b"x" * BODY))
    assert status(fits) not in (0, 413)


def test_health_takes_no_body(pki: Path, server: Running) -> None:
    for header in ("content-length: 5", "transfer-encoding: chunked"):
        assert status(say(secured(pki, server.public), request("GET", "/health", header))) == 413


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
            assert hear(connection) == b""
    assert time.monotonic() - began < 30
    assert eventually(lambda: "no whole request within 3 seconds" in server.log.read_text())


def test_a_body_that_stops_is_refused(pki: Path, server: Running) -> None:
    begun = request("POST", PULL, "content-length: 50000", *signed(pki, "north"), body=b"x" * 10)
    answer = say(secured(pki, server.public), begun)
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
        return status(say(secured(pki, server.public), request("GET", "/health"))) == 200
    except OSError:
        return False


def supernode(pki: Path, keys: Path, client: str, server: Running) -> subprocess.Popen[str]:
    """Start Flower's own client."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "flower-supernode"), "--port", str(port)]
    command += ["--root-certificates", str(pki / "ca.crt"), "--superlink", f"127.0.0.1:{server.public}"]
    command += ["--auth-supernode-private-key", str(keys / "clients" / client / "client.key")]
    command += ["--isolation", "process"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_an_unknown_key_is_told_so_on_both_sides(pki: Path, strangers: Path, server: Running) -> None:
    output, _ = supernode(pki, strangers, "stranger", server).communicate(timeout=240)
    assert "The server does not know this client's key; send the .pub file" in " ".join(output.split())
    public = strangers / "server/clients/stranger.pub"
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", str(public)], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    said = [line for line in server.log.read_text().splitlines() if "does not know" in line]
    # The log keeps the first of a minute; an earlier test may have been the first.
    assert said
    assert fingerprint in said[0] or "no key" in said[0]


def test_a_client_joins_while_its_key_is_in_the_folder(pki: Path, server: Running) -> None:
    process = supernode(pki, pki, "south", server)
    try:
        assert eventually(lambda: nodes(pki, server).get("south") == "online")
        assert nodes(pki, server)["north"] == "registered"
        (server.clients / "south.pub").unlink()
        assert eventually(lambda: nodes(pki, server).get("south") != "online")
        # Refused from now on, it ends by itself.
        process.communicate(timeout=240)
    finally:
        process.kill()
    assert "its client is shut out" in server.log.read_text()


def test_a_key_that_is_added_later_is_let_in_and_a_removed_one_does_not_return(
    pki: Path, strangers: Path, server: Running
) -> None:
    (server.clients / "late.pub").write_bytes((strangers / "server/clients/stranger.pub").read_bytes())
    assert eventually(lambda: nodes(pki, server).get("late") == "registered")
    (server.clients / "late.pub").unlink()
    assert eventually(lambda: nodes(pki, server)["late"] == "unregistered")
    (server.clients / "again.pub").write_bytes((strangers / "server/clients/stranger.pub").read_bytes())
    assert eventually(lambda: "this key was removed once" in server.log.read_text())
    assert "again" not in nodes(pki, server)


def test_the_database_is_the_owners_alone(server: Running) -> None:
    assert (server.log.parent / "sl.db").stat().st_mode & 0o077 == 0


def test_a_client_certificate_is_asked_for_where_it_shall_be(
    pki: Path, strangers: Path, tmp_path: Path
) -> None:
    with superlink(pki, tmp_path, "--client-certificates") as server:
        for certificate in (None, strangers / "clients/stranger"):
            # In TLS 1.3 the refusal comes after the client's part of the handshake.
            connection = secured(pki, server.public, certificate=certificate)
            assert say(connection, request("GET", "/health")) == b""
        north = secured(pki, server.public, certificate=pki / "clients/north")
        assert status(say(north, request("GET", "/health"))) == 200
        # The private side, where `flwr` has none, asks for none.
        assert nodes(pki, server).keys() == {"north", "south"}


def test_plain_text_only_where_it_is_asked_for(pki: Path, strangers: Path, tmp_path: Path) -> None:
    with superlink(pki, tmp_path, tls=False) as server:

        def plain() -> socket.socket:
            return socket.create_connection(("127.0.0.1", server.public), timeout=10)

        assert status(say(plain(), request("GET", "/health"))) == 200
        assert status(say(plain(), request("POST", "/v1/control/list-nodes"))) == 403
        stranger = request("POST", PULL, *signed(strangers, "stranger"))
        assert b"does not know this client's key" in say(plain(), stranger)


def test_a_server_does_not_start_with_a_certificate_that_no_client_accepts(
    pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def context(folder: Path) -> ssl.SSLContext:
        names = {"ca": "ca.crt", "certificate": "server.crt", "key": "server.key"}
        files = {name: folder / "server" / file for name, file in names.items()}
        return module.tls_context(files, client_certificates=False)

    assert context(pki).minimum_version == ssl.TLSVersion.TLSv1_2
    assert caplog.messages == []
    now = datetime.now(UTC)
    make_at(tmp_path / "old", monkeypatch, now - timedelta(days=10))
    with pytest.raises(ConfigError, match=r"only; remove server.crt and server.key and make new ones"):
        context(tmp_path / "old")
    make_at(tmp_path / "soon", monkeypatch, now)
    context(tmp_path / "soon")
    assert "make a new one in time" in caplog.text
    (tmp_path / "soon/server/server.key").write_bytes((pki / "server/server.key").read_bytes())
    with pytest.raises(ConfigError, match="certificate, key and authority do not fit each other"):
        context(tmp_path / "soon")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--tls: name the folder"),
        (["--tls", "PKI/server", "--insecure"], "leave one of them out"),
        (["--tls", "PKI/server", "--private", "0.0.0.0:0"], "it must be a loopback address"),
        (["--tls", "PKI/clients"], "PKI/clients/ca.crt: it cannot be read"),
        (["--tls", "PKI/server", "--public", "localhost"], "'localhost' is no HOST:PORT"),
        (
            ["--tls", "PKI/server", "--public", "192.0.2.99:0"],
            "--public 192.0.2.99:0: it cannot listen there",
        ),
        (["--tls", "PKI/server", "--limit", "reqests=3"], "did you mean 'requests'?"),
        (["--tls", "PKI/server", "--clients", "PKI/none"], "the folder of client keys cannot be read"),
        (["--tls", "PKI/server", "--database", "PKI/none/sl.db"], "there is no folder PKI/none"),
        (["--tls", "PKI/server", "--secret", "PKI/none"], "--secret PKI/none: it cannot be read"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    pki: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sentence: str,
) -> None:
    # What would outlive the test in this process.
    monkeypatch.setattr(os, "umask", lambda mask: mask)
    monkeypatch.setattr(module, "_log_to_standard_error", lambda: None)
    given = [option.replace("PKI", str(pki)) for option in options]
    base = ["--clients", str(pki / "server/clients"), "--public", "127.0.0.1:0", "--private", "127.0.0.1:0"]
    assert module.main([*base, *given]) == 2
    error = capsys.readouterr().err
    assert sentence.replace("PKI", str(pki)) in error
    assert error.count("\n") == 1
