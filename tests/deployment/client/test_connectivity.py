"""Errors of a client whose server is not there, not who it should be, or does not know it."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedvision.deployment import certificates
from fedvision.deployment.client import connectivity
from fedvision.deployment.client.config import SuperlinkConfig
from fedvision.deployment.client.connectivity import probe, read_key
from fedvision.deployment.transport.internals_message_objects import LinkRefused
from fedvision.errors import ConfigError, ServerError
from tests.deployment.server.certificate_dates import make_at


@contextlib.contextmanager
def answering(
    answer: bytes, certificate: Path | None = None, *, client_ca: Path | None = None
) -> Iterator[int]:
    """Serve one connection with an answer, over TLS where a folder with server.crt is named."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                plain, _ = listening.accept()
                with plain:
                    secure = _secure(plain, certificate, client_ca) if certificate else plain
                    secure.settimeout(5)
                    secure.recv(65536)
                    secure.sendall(answer)
                    secure.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                socket.create_connection(listening.getsockname(), timeout=1).close()
            thread.join(10)


def _secure(plain: socket.socket, certificate: Path, client_ca: Path | None) -> ssl.SSLSocket:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "server.crt", certificate / "server.key")
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context.wrap_socket(plain, server_side=True)


def asking(pki: Path, port: int, host: str = "127.0.0.1") -> SuperlinkConfig:
    own = pki / "clients/north"
    return SuperlinkConfig(
        address=f"{host}:{port}", key=str(own / "client.key"), root_certificate=str(own / "ca.crt")
    )


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"


def test_a_good_servers_clock_and_certificate_end(pki: Path) -> None:
    then = datetime.now(UTC) - timedelta(seconds=100)
    date = then.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n\r\n").encode()
    with answering(OK + date, pki / "server") as port:
        greeting = probe(asking(pki, port))
    # The date has no fractions; the answer and the way here take some time as well.
    taken = (datetime.now(UTC) - then).total_seconds() - 100
    assert 99 <= greeting.ahead <= 101 + taken
    assert greeting.valid_until is not None
    assert greeting.valid_until == certificates.validity(pki / "server/server.crt")[1]


def test_an_expired_certificate_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_at(tmp_path, monkeypatch, datetime.now(UTC) - timedelta(days=10))
    with (
        answering(OK, tmp_path / "server") as port,
        pytest.raises(ServerError, match="has expired; the server needs a new one"),
    ):
        probe(asking(tmp_path, port))


def test_a_certificate_of_tomorrow_makes_the_clock_doubtful(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_at(tmp_path, monkeypatch, datetime.now(UTC) + timedelta(days=10))
    with answering(OK, tmp_path / "server") as port, pytest.raises(ServerError, match="not valid yet"):
        probe(asking(tmp_path, port))


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("127.0.0.2", "its certificate is not for 127.0.0.2; write a name that it holds"),
        ("no-such-name.invalid", "there is no machine of this name"),
    ],
)
def test_another_name_is_a_sentence(pki: Path, host: str, sentence: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listening:
        port = listening.getsockname()[1]

        def serve() -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as plain:
                _secure(plain, pki / "server", None).close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(ServerError) as caught:
            probe(asking(pki, port, host), timeout=5)
        assert sentence in str(caught.value)
        assert str(caught.value).startswith(f"{host}:{port}: ")
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join(5)


def test_a_stranger_authority_is_a_sentence(pki: Path, strangers: Path) -> None:
    with answering(OK, strangers / "server") as port, pytest.raises(ServerError, match="is not signed by"):
        probe(asking(pki, port))


def test_a_port_where_nothing_listens_is_a_sentence(pki: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ServerError, match="nothing listens there"):
        probe(asking(pki, port))


@pytest.mark.parametrize("host", ["a..b", ".example.org", "x" * 70 + ".org"])
@pytest.mark.parametrize("insecure", [False, True], ids=["tls", "plain"])
def test_a_name_that_no_machine_can_have_is_a_sentence(pki: Path, host: str, insecure: bool) -> None:
    wrong = asking(pki, 1, host)
    if insecure:
        wrong = SuperlinkConfig(address=wrong.address, key=wrong.key, insecure=True)
    with pytest.raises(ServerError, match="there is no machine of this name"):
        probe(wrong)


def test_a_server_that_is_silent_is_a_sentence(pki: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with pytest.raises(ServerError, match="no answer in time"):
            probe(asking(pki, listening.getsockname()[1]), timeout=0.3)


def test_plain_text_and_tls_do_not_meet(pki: Path) -> None:
    with answering(OK + b"\r\n") as port, pytest.raises(ServerError, match="it speaks no TLS"):
        probe(asking(pki, port))
    insecure = dataclasses.replace(asking(pki, 1), insecure=True, root_certificate="")
    with answering(OK, pki / "server") as port:
        with pytest.raises(ServerError, match=r"remove superlink.insecure|cannot be reached"):
            probe(dataclasses.replace(insecure, address=f"127.0.0.1:{port}"))
    with answering(OK + b"\r\n") as port:
        greeting = probe(dataclasses.replace(insecure, address=f"127.0.0.1:{port}"))
    assert (greeting.valid_until, greeting.ahead) == (None, None)


def test_some_other_web_server_is_a_sentence(pki: Path) -> None:
    other = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    with answering(other, pki / "server") as port:
        with pytest.raises(ServerError, match="not as a federation's server"):
            probe(asking(pki, port))


def test_a_proxy_that_requires_a_certificate(pki: Path) -> None:
    own = asking(pki, 1)
    shown = dataclasses.replace(
        own,
        client_certificate=str(pki / "clients/north/tls.crt"),
        client_key=str(pki / "clients/north/tls.key"),
    )
    with answering(OK + b"\r\n", pki / "server", client_ca=pki / "ca.crt") as port:
        probe(dataclasses.replace(shown, address=f"127.0.0.1:{port}"))
    with answering(OK + b"\r\n", pki / "server", client_ca=pki / "ca.crt") as port:
        with pytest.raises(ServerError, match=r"superlink\.client_certificate"):
            probe(dataclasses.replace(own, address=f"127.0.0.1:{port}"))


@pytest.mark.parametrize("content", ["secret nonsense", "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n"])
def test_a_file_that_is_no_key_is_named_and_never_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_key(str(path))
    assert str(caught.value).startswith(f"superlink.key: {path} is no OpenSSH private key")
    assert "secret" not in str(caught.value)
    assert "c2Vj" not in str(caught.value)


def test_keys_of_another_kind_or_with_a_passphrase_are_named(tmp_path: Path) -> None:
    for name, kind, phrase in (("ed", "ed25519", ""), ("locked", "ecdsa", "secret")):
        key = tmp_path / name
        subprocess.run(["ssh-keygen", "-q", "-N", phrase, "-f", str(key), "-t", kind], check=True)
    with pytest.raises(ConfigError, match="is no ECDSA key"):
        read_key(str(tmp_path / "ed"))
    with pytest.raises(ConfigError, match="without a passphrase"):
        read_key(str(tmp_path / "locked"))


def test_a_certificate_that_cannot_be_used_names_its_key(pki: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.crt"
    broken.write_text("nothing")
    own = asking(pki, 1)
    with pytest.raises(ConfigError, match=r"superlink.root_certificate: .*broken.crt cannot be used"):
        connectivity.tls_context(dataclasses.replace(own, root_certificate=str(broken)))
    half = dataclasses.replace(own, client_certificate=str(broken), client_key=str(broken))
    with pytest.raises(ConfigError, match=r"superlink.client_certificate: .*broken.crt cannot be used"):
        connectivity.tls_context(half)


@contextlib.contextmanager
def a_proxy(answer: bytes, received: list[bytes]) -> Iterator[int]:
    """Serve one connection as a proxy that gives one answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                plain, _ = listening.accept()
                with plain:
                    plain.settimeout(5)
                    received.append(plain.recv(65536))
                    plain.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                socket.create_connection(listening.getsockname(), timeout=1).close()
            thread.join(10)


def test_the_check_goes_through_the_proxy_that_the_client_will_use(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[bytes] = []
    superlink = dataclasses.replace(asking(pki, 8443), address="fl.example.org:8443")
    for name in ("no_proxy", "NO_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with a_proxy(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", received) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:pw@127.0.0.1:{port}")
        with pytest.raises(ServerError, match="it cannot be reached through the proxy") as error:
            probe(superlink)
    assert received[0].startswith(b"CONNECT fl.example.org:8443 HTTP/1.")
    assert b"proxy-authorization: Basic YW5uOnB3" in received[0]
    assert f"the proxy 127.0.0.1:{port}: Tunnel connection failed: 403 Forbidden; correct HTTPS_PROXY" in str(
        error.value
    )
    assert "put fl.example.org into NO_PROXY" in str(error.value)


def test_a_proxy_gets_the_whole_address_in_plain_text(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []
    key = str(pki / "clients/north/client.key")
    superlink = SuperlinkConfig(address="fl.example.org:8443", key=key, insecure=True)
    for name in ("no_proxy", "NO_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with a_proxy(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", received) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        probe(superlink)
    assert received[0].startswith(
        b"GET http://fl.example.org:8443/health HTTP/1.1\r\nHost: fl.example.org:8443\r\n"
    )


def test_a_key_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"superlink.key: .*none cannot be read: No such file"):
        read_key(str(tmp_path / "none"))


def test_a_key_that_counts_as_online_elsewhere_is_a_sentence(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers and knows the key: what is wrong is what it said to the call that failed."""
    greeting = connectivity.ProbeResult(seconds=0.1, ahead=0.0, valid_until=None)
    monkeypatch.setattr(connectivity, "probe", lambda *_: greeting)
    monkeypatch.setattr(connectivity, "check_authorized", lambda *_: None)
    told = connectivity.diagnose(asking(pki, 1), LinkRefused("Failed to activate node"))
    assert told == (
        "127.0.0.1:1: Failed to activate node; the key counts as online: another machine uses it, or this "
        "one lost its state"
    )
    assert connectivity.diagnose(asking(pki, 1), LinkRefused("no")) == "127.0.0.1:1: no"
