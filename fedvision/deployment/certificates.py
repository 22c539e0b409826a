"""Certificates and keys of a federation: one authority, one server, one key a client.

::

    DIR/
    ├── ca.key              signs further certificates; keep it safe and off the other machines
    ├── ca.crt              the authority's certificate, public
    ├── server/             for the server's machine: ca.crt server.crt server.key clients/NAME.pub
    └── clients/NAME/       for the machine NAME: ca.crt client.key client.crt [tls.crt tls.key]

``client.key`` is what Flower takes as a node's key: ECDSA on NIST P-384 (FIPS 186-5), in OpenSSH's format.
``client.crt`` proves to the other clients whose key it is (``share.counts = "masked"``). ``tls.crt`` and
``tls.key`` are for mutual TLS. Certificates follow RFC 5280 with subject alternative names.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedvision.errors import ConfigError

_SECRET, _OPEN = 0o600, 0o644
_AUTHORITY_DAYS = 3650
_EARLY = timedelta(hours=1)
"""Certificates begin to be valid this long ago: clocks differ."""
_ALWAYS = ("localhost", "127.0.0.1")

File = tuple[bytes, int]
"""A file's content and its mode."""


class Authority(NamedTuple):
    """Who signs: its own certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make(
    folder: Path, *, hosts: Sequence[str], clients: Sequence[str], days: int = 365, mutual_tls: bool = False
) -> list[Path]:
    """Make an authority, the server's certificate and clients' keys; or add to those that are there.

    Where the folder has an authority already, it signs what is added. No file is ever written over.

    Args:
        folder: Created where it is missing.
        hosts: DNS names and IP addresses by which clients reach the server; empty adds clients only.
        clients: Their names.
        days: Validity of certificates; the authority's is ten years, or this if longer.
        mutual_tls: Make each client a TLS certificate too.

    Returns:
        The files written.

    Raises:
        ConfigError: A name or number is wrong, a file is there already, or the folder cannot be written.
    """
    _check(hosts, clients, days)
    known = (folder / "ca.crt").exists() or (folder / "ca.key").exists()
    if not known and not hosts:
        raise ConfigError(f"{folder}: there is no authority yet; name the server with --host")
    authority = _read_authority(folder, days) if known else _new_authority(max(days, _AUTHORITY_DAYS))
    files: dict[Path, File] = {}
    if not known:
        files[Path("ca.key")] = (_pem(authority.key), _SECRET)
        files[Path("ca.crt")] = _public(authority.certificate)
    if hosts:
        files |= _server_files(authority, hosts, days)
    for client in clients:
        files |= _client_files(authority, client, days, mutual_tls)
    return _write(folder, files)


def validity(path: Path) -> tuple[datetime, datetime]:
    """Return from when (inclusive) and until when (exclusive) a certificate is valid, in UTC.

    Raises:
        ValueError: The file is no PEM certificate.
        OSError: It cannot be read.
    """
    found = x509.load_pem_x509_certificate(path.read_bytes())
    return found.not_valid_before_utc, found.not_valid_after_utc


def _check(hosts: Sequence[str], clients: Sequence[str], days: int) -> None:
    if days < 1:
        raise ConfigError(f"--days must be >= 1, not {days}")
    for host in hosts:
        if not _is_ip(host) and not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", host):
            raise ConfigError(
                f"--host {host!r} is no DNS name or IP address; name it without https:// and port"
            )
    for client in clients:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", client):
            raise ConfigError(f"--clients {client!r}: use letters, digits, '.', '_' and '-'")
    if len(set(clients)) < len(clients):
        raise ConfigError("--clients: every client needs a name of its own")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _read_authority(folder: Path, days: int) -> Authority:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: it cannot be read: {error.strerror}; an authority is ca.crt with its ca.key"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder}: ca.crt or ca.key is no PEM file of fedvision's: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{folder}: ca.key is not the key of ca.crt; bring the pair that belongs together")
    if certificate.not_valid_after_utc < datetime.now(UTC) + timedelta(days=days):
        raise ConfigError(
            f"{folder / 'ca.crt'}: it is valid until {certificate.not_valid_after_utc:%Y-%m-%d}, less than "
            f"--days {days}; lower --days, or begin a new authority in another folder"
        )
    return Authority(certificate, key)


def _new_authority(days: int) -> Authority:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedvision authority")])
    builder = _builder(name, name, key, days, authority=True)
    return Authority(builder.sign(key, hashes.SHA384()), key)


def _server_files(authority: Authority, hosts: Sequence[str], days: int) -> dict[Path, File]:
    key = ec.generate_private_key(ec.SECP384R1())
    general = [
        x509.IPAddress(ipaddress.ip_address(name)) if _is_ip(name) else x509.DNSName(name)
        for name in dict.fromkeys([*hosts, *_ALWAYS])
    ]
    certificate = _issue(authority, hosts[0], key, days, ExtendedKeyUsageOID.SERVER_AUTH, general)
    return {
        Path("server/ca.crt"): _public(authority.certificate),
        Path("server/server.crt"): _public(certificate),
        Path("server/server.key"): (_pem(key), _SECRET),
    }


def _client_files(authority: Authority, client: str, days: int, mutual_tls: bool) -> dict[Path, File]:
    own = Path("clients") / client
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    listed: File = (public + f" {client}\n".encode(), _OPEN)
    proof = _issue(authority, client, key, days, ExtendedKeyUsageOID.CLIENT_AUTH, [])
    files: dict[Path, File] = {
        own / "ca.crt": _public(authority.certificate),
        own / "client.key": (private, _SECRET),
        own / "client.crt": _public(proof),
        own / "client.pub": listed,
        Path("server/clients") / f"{client}.pub": listed,
    }
    if mutual_tls:
        tls = ec.generate_private_key(ec.SECP384R1())
        certificate = _issue(authority, client, tls, days, ExtendedKeyUsageOID.CLIENT_AUTH, [])
        files[own / "tls.crt"] = _public(certificate)
        files[own / "tls.key"] = (_pem(tls), _SECRET)
    return files


def _issue(
    authority: Authority,
    name: str,
    key: ec.EllipticCurvePrivateKey,
    days: int,
    purpose: x509.ObjectIdentifier,
    alternatives: Sequence[x509.GeneralName],
) -> x509.Certificate:
    # A common name has at most 64 letters (RFC 5280); the alternative names are what counts.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(subject, authority.certificate.subject, key, days, authority=False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(issuer, critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(authority.key, hashes.SHA384())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, *, authority: bool
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True
        )
        .add_extension(usage, critical=True)
    )


def _public(certificate: x509.Certificate) -> File:
    return certificate.public_bytes(Encoding.PEM), _OPEN


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(folder: Path, files: Mapping[Path, File]) -> list[Path]:
    """Write files that are not there yet, all or none; nobody else can ever read secret ones."""
    # What is there with the same content stays, as ca.crt is when a certificate is renewed.
    new = {folder / name: file for name, file in files.items() if not _holds(folder / name, file[0])}
    if there := [path for path in new if path.exists()]:
        raise ConfigError(
            f"{there[0]}: it is there already and is not written over; remove it if it shall be replaced, or "
            "leave its host or client out"
        )
    made: list[Path] = []
    try:
        for path, (content, mode) in new.items():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # O_EXCL: whoever put a file or a link there in the meantime is not written through.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(path)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(content)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        raise ConfigError(f"{error.filename or folder}: it cannot be written: {error.strerror}") from error
    return list(new)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False
