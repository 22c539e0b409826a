"""Certificates that OpenSSL accepts, keys that OpenSSH and Flower accept, files that stay as they are."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedvision.deployment.certificates import make, validity
from fedvision.errors import ConfigError
from tests.deployment.server.processes import read_to_end


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True)


def shake_hands(pki: Path, name: str, *, client: Path | None = None, client_required: bool = False) -> bytes:
    """Connect a client to a server of Python's ssl module; return what the client receives."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki / "ca.crt")
    serving.load_cert_chain(pki / "server/server.crt", pki / "server/server.key")
    serving.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_NONE
    trusting = ssl.create_default_context(cafile=pki / "clients/north/ca.crt")
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    if client:
        trusting.load_cert_chain(client / "tls.crt", client / "tls.key")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, contextlib.suppress(OSError), serving.wrap_socket(theirs, server_side=True) as secure:
            secure.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, trusting.wrap_socket(ours, server_hostname=name) as secure:
            return read_to_end(secure)
    finally:
        thread.join(10)


@pytest.mark.parametrize("name", ["fl.example.org", "localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_authority_shakes_hands_with_the_server(pki: Path, name: str) -> None:
    assert shake_hands(pki, name) == b"hello"


def test_another_name_or_another_authority_is_refused(pki: Path, strangers: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'fl.example.com'"):
        shake_hands(pki, "fl.example.com")
    context = ssl.create_default_context(cafile=strangers / "ca.crt")
    with pytest.raises(ssl.SSLError):
        context.load_cert_chain(pki / "server/server.crt", strangers / "server/server.key")
    verified = openssl("verify", "-CAfile", f"{strangers}/ca.crt", f"{pki}/server/server.crt")
    assert verified.returncode != 0


def test_mutual_tls_knows_this_federations_clients_only(pki: Path, strangers: Path) -> None:
    assert shake_hands(pki, "localhost", client=pki / "clients/north", client_required=True) == b"hello"
    assert shake_hands(pki, "localhost", client_required=True) == b""
    assert shake_hands(pki, "localhost", client=strangers / "clients/stranger", client_required=True) == b""


@pytest.mark.parametrize(
    ("certificate", "purpose", "good"),
    [
        ("server/server.crt", "sslserver", True),
        ("clients/north/tls.crt", "sslclient", True),
        # A client's certificate must not pass for the server's, nor sign others.
        ("clients/north/tls.crt", "sslserver", False),
        ("server/server.crt", "sslclient", False),
    ],
)
def test_openssl_takes_each_certificate_for_its_purpose(
    pki: Path, certificate: str, purpose: str, good: bool
) -> None:
    done = openssl(
        "verify", "-x509_strict", "-purpose", purpose, "-CAfile", f"{pki}/ca.crt", f"{pki}/{certificate}"
    )
    assert (done.returncode == 0) is good, done.stderr


def test_the_servers_names_are_in_it_once_and_this_machines_always(tmp_path: Path) -> None:
    make(tmp_path, hosts=["fl.example.org", "2001:db8::1", "192.0.2.1", "localhost"], clients=[])
    text = openssl("x509", "-in", f"{tmp_path}/server/server.crt", "-noout", "-ext", "subjectAltName").stdout
    names = text.split("\n", 1)[1].strip().split(", ")
    assert names == [
        "DNS:fl.example.org",
        "IP Address:2001:DB8:0:0:0:0:0:1",
        "IP Address:192.0.2.1",
        "DNS:localhost",
        "IP Address:127.0.0.1",
    ]


def test_the_days_are_the_certificates_and_the_authority_outlives_them(tmp_path: Path) -> None:
    make(tmp_path, hosts=["a"], clients=["b"], days=30, mutual_tls=True)
    now = datetime.now(UTC)
    for name in ("server/server.crt", "clients/b/tls.crt"):
        begins, ends = validity(tmp_path / name)
        assert begins < now
        assert timedelta(days=29, hours=23) < ends - now <= timedelta(days=30)
    assert validity(tmp_path / "ca.crt")[1] - now > timedelta(days=3649)


def test_a_clients_key_is_what_openssh_and_flower_read(pki: Path) -> None:
    private = pki / "clients/north/client.key"
    public = (pki / "server/clients/north.pub").read_text()
    derived = subprocess.run(["ssh-keygen", "-yf", str(private)], capture_output=True, text=True, check=True)
    assert public.split()[:2] == derived.stdout.split()[:2]
    assert public.split()[0] == "ecdsa-sha2-nistp384"
    key = load_ssh_private_key(private.read_bytes(), None)
    assert key.public_key() == load_ssh_public_key(public.encode())


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_secret_files_are_the_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make(tmp_path, hosts=["localhost"], clients=["a", "b"], mutual_tls=True)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    secret = {path for path in files if path.suffix == ".key"}
    assert len(secret) == 1 + 1 + 2 * 2
    assert all(path.stat().st_mode & 0o777 == (0o600 if path in secret else 0o644) for path in files)
    assert all(b"PRIVATE" not in path.read_bytes() for path in files if path not in secret)


def test_only_the_authority_can_sign(pki: Path) -> None:
    for certificate, constraint in (("ca.crt", "CA:TRUE"), ("server/server.crt", "CA:FALSE")):
        shown = openssl("x509", "-in", f"{pki}/{certificate}", "-noout", "-ext", "basicConstraints,keyUsage")
        assert constraint in shown.stdout
        assert ("Certificate Sign" in shown.stdout) is (constraint == "CA:TRUE")


def test_clients_are_added_to_an_authority_that_is_there(tmp_path: Path) -> None:
    make(tmp_path, hosts=["localhost"], clients=["a"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written = make(tmp_path, hosts=[], clients=["b"], mutual_tls=True)
    assert {path.name for path in written} == {
        "ca.crt",
        "client.key",
        "client.crt",
        "client.pub",
        "b.pub",
        "tls.crt",
        "tls.key",
    }
    assert all(path.read_bytes() == content for path, content in before.items())
    assert openssl("verify", "-CAfile", f"{tmp_path}/ca.crt", f"{tmp_path}/clients/b/tls.crt").returncode == 0


def test_nothing_is_written_over_and_then_nothing_else_is_written_either(tmp_path: Path) -> None:
    make(tmp_path, hosts=["localhost"], clients=["a"])
    for hosts, clients in ((["localhost"], ["b"]), ([], ["b", "a"])):
        with pytest.raises(ConfigError, match="it is there already and is not written over"):
            make(tmp_path, hosts=hosts, clients=clients)
        assert not (tmp_path / "clients/b").exists()


def test_the_servers_certificate_is_renewed_by_removing_the_old_one(tmp_path: Path) -> None:
    make(tmp_path, hosts=["localhost"], clients=[])
    for name in ("server.crt", "server.key"):
        (tmp_path / "server" / name).unlink()
    make(tmp_path, hosts=["localhost"], clients=[])
    assert openssl("verify", "-CAfile", f"{tmp_path}/ca.crt", f"{tmp_path}/server/server.crt").returncode == 0


@pytest.mark.parametrize(
    ("hosts", "clients", "days", "sentence"),
    [
        (["https://a"], [], 1, "is no DNS name or IP address"),
        (["a:8443"], [], 1, "is no DNS name or IP address"),
        (["a"], ["../b"], 1, "--clients '../b': use letters"),
        (["a"], ["b", "b"], 1, "a name of its own"),
        (["a"], ["b"], 0, "--days must be >= 1, not 0"),
        ([], ["b"], 1, "there is no authority yet; name the server with --host"),
    ],
)
def test_a_wrong_name_is_one_sentence_and_writes_nothing(
    tmp_path: Path, hosts: list[str], clients: list[str], days: int, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tmp_path / "new", hosts=hosts, clients=clients, days=days)
    assert sentence in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_half_an_authority_or_two_halves_of_two_are_refused(tmp_path: Path, strangers: Path) -> None:
    make(tmp_path, hosts=["localhost"], clients=[])
    with pytest.raises(ConfigError, match="less than --days 4000"):
        make(tmp_path, hosts=[], clients=["a"], days=4000)
    (tmp_path / "ca.key").write_bytes((strangers / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca.key is not the key of ca.crt"):
        make(tmp_path, hosts=[], clients=["a"])
    (tmp_path / "ca.key").write_text("no key")
    with pytest.raises(ConfigError, match=r"ca.crt or ca.key is no PEM file"):
        make(tmp_path, hosts=[], clients=["a"])
    (tmp_path / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca.key: it cannot be read: No such file"):
        make(tmp_path, hosts=[], clients=["a"])


def test_a_disk_that_is_full_leaves_no_half_of_a_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stood there in part would be taken for the authority, or refused as being there already."""
    original, made = os.fchmod, list[int]()

    def full(descriptor: int, mode: int) -> None:
        made.append(descriptor)
        if len(made) == 3:
            raise OSError(28, "No space left on device")
        original(descriptor, mode)

    folder = tmp_path / "pki"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fchmod", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            make(folder, hosts=["localhost"], clients=["north"])
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert make(folder, hosts=["localhost"], clients=["north"])
