"""How the server starts: with which certificates, with and without TLS, with a wrong command line."""

from __future__ import annotations

import json
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedvision.deployment import tls
from fedvision.deployment.server import superlink as module
from fedvision.deployment.server.options import SuperlinkOptions
from fedvision.deployment.transport import internals_superlink
from fedvision.errors import ConfigError
from tests.deployment.server.certificate_dates import make_at
from tests.deployment.server.processes import (
    PULL,
    nodes,
    request,
    secured,
    send_request,
    signed,
    status,
    superlink,
)


@pytest.mark.slow
def test_client_certificate_required_where_configured(pki: Path, strangers: Path, tmp_path: Path) -> None:
    with superlink(pki, tmp_path, client_certificates=True) as server:
        for certificate in (None, strangers / "clients/stranger"):
            # In TLS 1.3 the refusal comes after the client's part of the handshake.
            connection = secured(pki, server.public, certificate=certificate)
            assert send_request(connection, request("GET", "/health")) == b""
        north = secured(pki, server.public, certificate=pki / "clients/north")
        assert status(send_request(north, request("GET", "/health"))) == 200
        # The private side, where `flwr` has none, needs none.
        assert nodes(pki, server).keys() == {"north", "south"}


@pytest.mark.long
def test_plain_text_only_where_configured(pki: Path, strangers: Path, tmp_path: Path) -> None:
    with superlink(pki, tmp_path, tls=False) as server:

        def plain() -> socket.socket:
            return socket.create_connection(("127.0.0.1", server.public), timeout=10)

        assert status(send_request(plain(), request("GET", "/health"))) == 200
        assert status(send_request(plain(), request("POST", "/v1/control/list-nodes"))) == 403
        stranger = request("POST", PULL, *signed(strangers, "stranger"))
        assert b"does not know this client's key" in send_request(plain(), stranger)


def test_a_server_does_not_start_with_a_certificate_that_no_client_accepts(
    pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def context(folder: Path) -> ssl.SSLContext:
        names = {"ca": "ca.crt", "certificate": "server.crt", "key": "server.key"}
        files = {name: folder / "server" / file for name, file in names.items()}
        return tls.server_context(files, client_certificates=False)

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
    ("given", "sentence"),
    [
        ({"tls": None}, "--tls: name the folder"),
        ({"insecure": True}, "leave one of them out"),
        ({"private": "0.0.0.0:0"}, "it must be a loopback address"),
        ({"tls": "PKI/clients"}, "PKI/clients/ca.crt: it cannot be read"),
        ({"public": "localhost"}, "'localhost' is no HOST:PORT"),
        ({"public": "a..b:0"}, "--public a..b:0: no machine can have this name"),
        ({"public": "192.0.2.99:0"}, "--public 192.0.2.99:0: it cannot listen there"),
        ({"clients": "PKI/none"}, "the folder of client keys cannot be read"),
        ({"state": "PKI/ca.crt/none"}, "--state PKI/ca.crt/none: it cannot be written"),
    ],
)
def test_wrong_options_are_one_sentence(
    pki: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    sentence: str,
) -> None:
    # What would outlive the test in this process.
    monkeypatch.setattr(os, "umask", lambda mask: mask)
    monkeypatch.setattr(module.server_log, "install", lambda path: None)
    monkeypatch.setattr(internals_superlink, "superlink", lambda **_: (None, None))
    good = SuperlinkOptions(
        tls=pki / "server",
        clients=pki / "server/clients",
        state=tmp_path,
        public="127.0.0.1:0",
        private="127.0.0.1:0",
    )
    options = json.dumps({**json.loads(good.to_text()), **given})
    assert module.main(options.replace("PKI", str(pki))) == 2
    error = capsys.readouterr().err
    assert sentence.replace("PKI", str(pki)) in error
    assert error.count("\n") == 1
