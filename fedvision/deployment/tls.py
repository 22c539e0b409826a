"""TLS settings of every connection: TLS 1.2 or newer, and the other side is always checked."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from fedvision.deployment.certificates import validity
from fedvision.errors import ConfigError

log = logging.getLogger("fedvision.deployment")
_SOON_DAYS = 30


def client_context(roots: Path | None, certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
    """Return a client's settings.

    Args:
        roots: File of the authority that signed the server's certificate; None trusts the system's.
        certificate: Files of certificate and key for mutual TLS.

    Raises:
        OSError: A file cannot be used.
    """
    context = ssl.create_default_context(cafile=str(roots) if roots else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate:
        context.load_cert_chain(*certificate)
    return context


def loopback_context(roots: Path) -> ssl.SSLContext:
    """Return settings for a server on this machine: its own certificate, or one of its authority's.

    Certificates hold the name under which clients know a server, and need not hold 127.0.0.1.
    """
    context = client_context(roots)
    context.check_hostname = False
    own = roots.with_name("server.crt")
    if own.is_file():
        context.load_verify_locations(cafile=str(own))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def server_context(files: Mapping[str, Path], *, client_certificates: bool) -> ssl.SSLContext:
    """Return the settings of a server's public side.

    Args:
        files: ``ca``, ``certificate`` and ``key``.
        client_certificates: Whether a client must show a certificate of the same authority.

    Raises:
        ConfigError: Certificate and key do not fit or are none, or the certificate is not valid now.
    """
    path = files["certificate"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(path, files["key"])
        context.load_verify_locations(files["ca"])
        begins, ends = validity(path)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{path}: certificate, key and authority do not fit each other ({error}); make new ones with "
            "`fedvision certificates`"
        ) from error
    now = datetime.now(UTC)
    if not begins <= now < ends:
        raise ConfigError(
            f"{path}: it is valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d} only; remove server.crt and "
            "server.key and make new ones with `fedvision certificates`"
        )
    if (ends - now).days < _SOON_DAYS:
        log.warning("%s is valid until %s only; make a new one in time", path, f"{ends:%Y-%m-%d}")
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
