"""Real servers in real processes, and the raw bytes that strangers send them."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedvision.deployment.server.limits import Limits
from fedvision.deployment.server.options import SuperlinkOptions
from fedvision.deployment.transport import internals_superlink

START_S = 180.0
PULL = "/v1/fleet/pull-messages"


class Running(NamedTuple):
    """A server that is ready."""

    private: int
    """Port on 127.0.0.1."""
    public: int
    """Port on every address."""
    clients: Path
    """Its folder of client keys."""
    place: SuperlinkOptions
    """What it was told."""

    @property
    def log(self) -> Path:
        """What it writes down."""
        return self.place.log


@contextlib.contextmanager
def superlink(
    pki: Path, folder: Path, *, tls: bool = True, client_certificates: bool = False, **limits: Any
) -> Iterator[Running]:
    """Run the server with every key of ``pki`` until the block ends."""
    clients = folder / "clients"
    shutil.copytree(pki / "server/clients", clients)
    place = SuperlinkOptions(
        public="0.0.0.0:0",
        private="127.0.0.1:0",
        tls=pki / "server" if tls else None,
        insecure=not tls,
        clients=clients,
        state=folder / "state",
        client_certificates=client_certificates,
        limits=Limits(**limits),
    )
    command = [sys.executable, "-m", "fedvision.deployment.server.superlink", place.to_text()]
    errors = folder / "log"
    with errors.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
        )
        try:
            ports = _ports(process, errors)
            yield Running(ports["private"], ports["public"], clients, place)
        finally:
            process.terminate()
            process.communicate(timeout=240)


def _ports(process: subprocess.Popen[str], log: Path) -> dict[str, int]:
    """Read the line that a server prints when it listens."""
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True).start()
    try:
        line = lines.get(timeout=START_S)
    except queue.Empty:
        raise AssertionError(f"the server did not start: {log.read_text()}") from None
    told = json.loads(line.removeprefix("ready "))
    return {side: int(told[side].rpartition(":")[2]) for side in ("private", "public")}


def secured(pki: Path, port: int, *, certificate: Path | None = None) -> ssl.SSLSocket:
    """Connect over TLS, trusting the authority alone."""
    context = ssl.create_default_context(cafile=pki / "ca.crt")
    if certificate:
        context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    return context.wrap_socket(plain, server_hostname="localhost")


def send_request(connection: socket.socket, request: bytes) -> bytes:
    """Send bytes and return everything that comes back until the other side hangs up."""
    with connection, contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(request)
        return read_to_end(connection)
    return b""


def read_to_end(connection: socket.socket) -> bytes:
    """Return everything that comes until the other side hangs up."""
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while part := connection.recv(65536):
            received += part
    return received


def status(answer: bytes) -> int:
    """Return the status of an HTTP answer, 0 for none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """Return an HTTP request, byte for byte."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def eventually(holds: Callable[[], bool], seconds: float = 600.0) -> bool:
    """Wait until something holds; False when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def signed(pki: Path, client: str) -> list[str]:
    """Return the headers with which a client signs a call."""
    key = load_ssh_private_key((pki / "clients" / client / "client.key").read_bytes(), None)
    headers = internals_superlink.signed_headers(key) | {"content-type": PROTOBUF_MEDIA_TYPE}  # type: ignore[arg-type]
    return [f"{name}: {value}" for name, value in headers.items()]


def control(pki: Path, port: int, call: str, message: bytes) -> httpx.Response:
    """Call the Control API."""
    return httpx.post(
        f"https://127.0.0.1:{port}/v1/control/{call}",
        content=message,
        headers={"content-type": PROTOBUF_MEDIA_TYPE},
        verify=ssl.create_default_context(cafile=pki / "ca.crt"),
        timeout=240,
    )


def nodes(pki: Path, server: Running) -> dict[str, str]:
    """Return name -> status of every client, as the administrator sees them."""
    answer = control(pki, server.private, "list-nodes", ListNodesRequest().SerializeToString())
    assert answer.status_code == 200
    return {node.name: node.status for node in ListNodesResponse.FromString(answer.content).nodes_info}
