"""Check the server before joining: is it there, who is it, its clock, does it know this client."""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.oid import NameOID

from fedvision.deployment.certificates import validity
from fedvision.deployment.client.config import SuperlinkConfig
from fedvision.deployment.tls import client_context
from fedvision.deployment.transport import internals_superlink
from fedvision.deployment.transport.proxies import Proxy, proxy_for
from fedvision.errors import ConfigError, FedVisionError, ServerError

_TIMEOUT_S = 10.0
_FIRST_BYTE_S = 1.0
NOBODY_LISTENS = "nothing listens there"
_SELF_SIGNED = {18, 19, 20, 21}
_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64
"""OpenSSL's X509_V_ERR_* numbers."""
_HUNG_UP = (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class ProbeResult(NamedTuple):
    """What the server answered."""

    seconds: float
    """Time to connect and answer."""
    ahead: float | None
    """Seconds by which this machine's clock is ahead of the server's; None where it sends no time."""
    valid_until: datetime | None
    """End of the server's certificate, UTC; None in plain text."""


def read_key(path: str) -> ec.EllipticCurvePrivateKey:
    """Read a client's private key: ECDSA in OpenSSH's format, without a passphrase.

    Raises:
        ConfigError: It cannot be read or is another kind of key; no sentence holds what is in the file.
    """
    try:
        key = load_ssh_private_key(Path(path).read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"superlink.key: {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # The parser raises almost anything on a file of another kind.
        raise ConfigError(
            f"superlink.key: {path} is no OpenSSH private key without a passphrase; `fedvision certificates` "
            'or `ssh-keygen -t ecdsa -b 384 -N ""` makes one'
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"superlink.key: {path} is no ECDSA key; `ssh-keygen -t ecdsa` makes one")
    return key


def key_owner(path: str) -> str | None:
    """Return for whom a client's key was made, None where that is unknown.

    ``fedvision certificates`` puts ``client.pub``, whose comment is the name, and ``client.crt`` there.

    Raises:
        ConfigError: The key cannot be read.
    """
    public, beside = read_key(path).public_key(), Path(path)
    with suppress(OSError, ValueError, UnsupportedAlgorithm):
        line = beside.with_suffix(".pub").read_bytes()
        name = b" ".join(line.split()[2:]).decode("utf-8", "replace")
        if name and load_ssh_public_key(line) == public:
            return name
    with suppress(OSError, ValueError, IndexError):
        certificate = x509.load_pem_x509_certificate((beside.parent / "client.crt").read_bytes())
        if certificate.public_key() == public:
            return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    return None


def tls_context(superlink: SuperlinkConfig) -> ssl.SSLContext:
    """Return how this client checks the server, and what it shows of itself.

    Raises:
        ConfigError: A certificate or key cannot be used.
    """
    key = "superlink.root_certificate"
    try:
        context = client_context(Path(superlink.root_certificate) if superlink.root_certificate else None)
        if superlink.client_certificate:
            key = "superlink.client_certificate"
            context.load_cert_chain(superlink.client_certificate, superlink.client_key)
    except OSError as error:  # SSLError is one.
        path = getattr(superlink, key.partition(".")[2])
        reason = getattr(error, "reason", None)
        why = reason.lower().replace("_", " ") if reason else error.strerror or str(error)
        raise ConfigError(f"{key}: {path} cannot be used: {why}") from error
    return context


def probe(superlink: SuperlinkConfig, timeout: float = _TIMEOUT_S) -> ProbeResult:
    """Request the server's health.

    Raises:
        ServerError: It cannot be reached, or its certificate is not good for its name; says what to do.
        ConfigError: This client's own certificates cannot be used.
    """
    began = time.monotonic()
    answer = _ask(superlink, timeout, "GET", "/health")
    if answer.status != 200:
        raise ServerError(
            f"{superlink.address} answers, but not as a federation's server (status {answer.status}); "
            "correct superlink.address"
        )
    ahead = None
    with suppress(ValueError):
        if answer.date:  # cut to whole seconds, made anew each second
            ahead = answer.middle - (parsedate_to_datetime(answer.date).timestamp() + 1)
    return ProbeResult(time.monotonic() - began, ahead, answer.valid_until)


def check_authorized(superlink: SuperlinkConfig, timeout: float = _TIMEOUT_S) -> None:
    """Check whether the server knows this client's key, without joining.

    Raises:
        ServerError: It does not, or the server cannot be reached.
        ConfigError: The key or a certificate cannot be used.
    """
    headers = internals_superlink.signed_headers(read_key(superlink.key))
    headers["content-type"] = internals_superlink.MEDIA_TYPE
    # An empty question of no node: it is refused in any case, but for an unknown key by the gate itself.
    answer = _ask(superlink, timeout, "POST", internals_superlink.GET_RUN, b"", headers)
    with suppress(ValueError):
        reply = json.loads(answer.body)
        if isinstance(reply, dict) and reply.get("code") == internals_superlink.NOT_ACTIVATED:
            raise ServerError(str(reply.get("detail")))


def diagnose(superlink: SuperlinkConfig, error: FedVisionError, timeout: float = 5.0) -> str:
    """Return why a connection does not work, in one sentence; a new request gives more detail.

    Args:
        superlink: The server.
        error: How the connection failed.
        timeout: Seconds for each of two questions.
    """
    try:
        ahead = probe(superlink, timeout).ahead or 0.0
        if abs(ahead) >= clock_limit(ahead):
            where = clock_difference(ahead)
            return (
                f"{superlink.address}: this machine's clock is {where}, which refuses its calls; set it (NTP)"
            )
        check_authorized(superlink, timeout)
    except ServerError as found:
        text = str(found)
        return text if text.startswith(superlink.address) else f"{superlink.address}: {text}"
    if "Failed to activate" in str(error):
        return (
            f"{superlink.address}: {error}; the key counts as online: another machine uses it, or this one "
            "lost its state"
        )
    return f"{superlink.address}: {error}"


class _Answer(NamedTuple):
    """What a server said to one question."""

    status: int
    date: str | None
    body: bytes
    middle: float
    """This machine's time halfway between question and answer."""
    valid_until: datetime | None


def _ask(
    superlink: SuperlinkConfig,
    timeout: float,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> _Answer:
    """Ask as the client does: straight, or through the proxy that the environment names."""
    proxy = way(superlink)
    host, port = (proxy.host, proxy.port) if proxy else (superlink.host, superlink.port)
    if superlink.insecure:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        if proxy:  # a proxy needs the whole address
            path, headers = f"http://{superlink.host}:{superlink.port}{path}", {**headers, **proxy.headers}
    else:
        context = tls_context(superlink)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        if proxy:
            connection.set_tunnel(superlink.host, superlink.port, headers=proxy.headers)
    try:
        connection.connect()
        _await_close(connection.sock, timeout)
        valid_until, before = _valid_until(connection.sock), time.time()
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read(65536)
        middle = (before + time.time()) / 2
        return _Answer(answer.status, answer.getheader("date"), text, middle, valid_until)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        why = _why_through(proxy, error, superlink) if proxy else _why(error, superlink)
        raise ServerError(f"{superlink.address}: {why}") from error
    finally:
        connection.close()


def way(superlink: SuperlinkConfig) -> Proxy | None:
    """Return the proxy through which this client reaches the server, or None.

    Raises:
        ConfigError: The environment names one that cannot be used.
    """
    return proxy_for("http" if superlink.insecure else "https", superlink.host)


def _why_through(proxy: Proxy, error: Exception, superlink: SuperlinkConfig) -> str:
    """Return why there is no connection through a proxy, and what to do."""
    name = "HTTP_PROXY" if superlink.insecure else "HTTPS_PROXY"
    if isinstance(error, ssl.SSLError):
        return f"{_why(error, superlink)} (the proxy {proxy.name} is in between: does it inspect TLS?)"
    what = "no answer in time" if isinstance(error, TimeoutError) else getattr(error, "strerror", "") or error
    return (
        f"it cannot be reached through the proxy {proxy.name}: {what}; correct {name}, or put "
        f"{superlink.host} into NO_PROXY"
    )


def _await_close(sock: socket.socket, timeout: float) -> None:
    """Wait for a server's first word, before anything is sent that it would not read.

    In TLS 1.3 a client's certificate is refused after the handshake; a request that is under way then makes
    the connection break before the reason has come. A server that is content sends its session tickets.
    """
    if not isinstance(sock, ssl.SSLSocket) or not select.select([sock], [], [], _FIRST_BYTE_S)[0]:
        return
    sock.setblocking(False)
    try:
        if not sock.recv(1):
            raise ConnectionResetError
    except (ssl.SSLWantReadError, BlockingIOError):
        pass
    finally:
        sock.settimeout(timeout)


def _why(error: Exception, superlink: SuperlinkConfig) -> str:
    """Return in one sentence why there is no connection, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _distrust(error, superlink)
    if isinstance(error, socket.gaierror | UnicodeError):
        return "there is no machine of this name; correct superlink.address"
    if isinstance(error, TimeoutError):
        return "no answer in time; is the port open in the server's firewall, and the address right?"
    if isinstance(error, ConnectionRefusedError):
        return f"{NOBODY_LISTENS}; is the server running, and the port right?"
    if isinstance(error, ssl.SSLError) and "WRONG_VERSION" in str(error):
        return "it speaks no TLS; correct superlink.address, or set superlink.insecure on a trial network"
    if own := _own_certificate(error, superlink):
        return own
    if isinstance(error, _HUNG_UP):
        if superlink.insecure:
            return "it hung up; does it speak TLS? then remove superlink.insecure"
        return "it hung up; does it ask for a client certificate? then set superlink.client_certificate"
    return f"it cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"


def _own_certificate(error: Exception, superlink: SuperlinkConfig) -> str | None:
    """Return what is wrong with this client's certificate, where that may be why there is no connection."""
    if "CERTIFICATE_REQUIRED" in str(error):
        return "it asks for a client certificate; set superlink.client_certificate and superlink.client_key"
    # Not every server says why it hangs up: asyncio drops the alert of a handshake that failed.
    if not superlink.client_certificate or not isinstance(error, (ssl.SSLError, *_HUNG_UP)):
        return None
    if validity(Path(superlink.client_certificate))[1] <= datetime.now(UTC):
        return "it refuses superlink.client_certificate, which has expired; ask for a new one"
    return "it hung up when it saw superlink.client_certificate; is that signed by the server's authority?"


def _distrust(error: ssl.SSLCertVerificationError, superlink: SuperlinkConfig) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate has expired; the server needs a new one (or is this machine's clock wrong?)"
    if code == _NOT_YET:
        return "its certificate is not valid yet; is this machine's clock wrong?"
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        return (
            f"its certificate is not for {superlink.host}; write a name that it holds into "
            "superlink.address, or ask for a certificate with this one"
        )
    if code in _SELF_SIGNED:
        signer = superlink.root_certificate or "an authority of this system"
        return f"its certificate is not signed by {signer}; ask for the federation's ca.crt"
    return f"its certificate is refused: {error.verify_message}"


def clock_limit(ahead: float) -> float:
    """Return from how many seconds on the server refuses calls of a clock that is ahead, or behind."""
    return internals_superlink.CLOCK_AHEAD_S if ahead > 0 else internals_superlink.CLOCK_BEHIND_S


def clock_difference(ahead: float) -> str:
    """Return a clock's difference in words."""
    return f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"


def _valid_until(sock: object) -> datetime | None:
    certificate = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
    if not certificate:
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
