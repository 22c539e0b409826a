"""The server's own side: reached without a proxy, whatever name its certificate holds."""

from __future__ import annotations

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fedvision.deployment import certificates
from fedvision.deployment.tls import client_context, loopback_context
from fedvision.deployment.transport.internals_run import RunLink, silence


def _handshake(context: ssl.SSLContext, certificate: Path, key: Path) -> str:
    """Shake hands in memory with a server at 127.0.0.1; return what is wrong, or nothing."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(there, back, server_hostname="127.0.0.1")
    theirs = server.wrap_bio(back, there, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
    return ""


def test_our_own_side_needs_no_127_0_0_1_in_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authority of one's own may sign the public name alone; a stranger's certificate stays refused."""
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_ALWAYS", ())
        certificates.make(tmp_path / "own", hosts=["fl.example.org"], clients=[])
    server = tmp_path / "own/server"
    pair = server / "server.crt", server / "server.key"
    assert "IP address mismatch" in _handshake(client_context(server / "ca.crt"), *pair)
    assert _handshake(loopback_context(server / "ca.crt"), *pair) == ""
    certificates.make(tmp_path / "strange", hosts=["localhost"], clients=[])
    strange = tmp_path / "strange/server"
    why = _handshake(loopback_context(server / "ca.crt"), strange / "server.crt", strange / "server.key")
    assert "unable to get local issuer" in why or "self-signed" in why


def test_flowers_clients_use_the_configured_route(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the environment: their own side never leaves this machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://192.0.2.1:9")
    with HTTPServer(("127.0.0.1", 0), _Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            link = RunLink(f"127.0.0.1:{server.server_port}", roots=None)
            assert silence(f"127.0.0.1:{server.server_port}", None) == ""
            assert link._control._client.get(f"{link._base}/health").status_code == 200
            link.close()
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_a_busy_server_is_given_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Healthy, "delay", 0.5)
    with HTTPServer(("127.0.0.1", 0), _Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"127.0.0.1:{server.server_port}"
            assert "timed out" in silence(address, None, within=0.05)
            assert silence(address, None, within=60.0) == ""
        finally:
            server.shutdown()
            thread.join()


class _Healthy(BaseHTTPRequestHandler):
    delay = 0.0
    """Seconds before it answers."""

    def do_GET(self) -> None:
        time.sleep(self.delay)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
