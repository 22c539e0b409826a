"""Sums of which nobody sees a summand: pairwise masks that cancel (Bonawitz et al. 2017).

"Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, section 4.0.1: every two
clients agree on a secret, one adds and the other subtracts the same random numbers modulo 2^64, and in the
sum over all of them the masks are gone. The paper's second mask and its shared secrets, which save a sum from
which somebody drops out, are left out: such a sum waits until that client is back.

A client's key agreement key (X25519) is signed with its node key, and the node key stands in a certificate of
the federation's authority. So the server that relays these cards can neither put itself between two clients
nor invent clients of its own, unless it holds the authority's key.

Letters: C classes, N numbers, K clients of a group.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from numpy.typing import NDArray

from fedvision.errors import MALFORMED, ConfigError

MIN_GROUP_SIZE = 3
"""Clients of a sum: of two, each could subtract itself from what all receive."""
_SIGNED = b"fedvision masking 1\n"
_NUMBER = np.dtype("<u8")


@dataclass(frozen=True, kw_only=True)
class AdvertisedKey:
    """What a client shows the others of its group."""

    public: bytes
    """Its X25519 key for one run, 32 bytes."""
    signature: bytes
    """Of its node key (ECDSA, SHA-384) over the run and ``public``."""
    certificate: bytes
    """Of its node key, by the federation's authority (DER)."""

    def to_table(self) -> dict[str, str]:
        """Return the card as texts."""
        return {name: base64.b64encode(getattr(self, name)).decode() for name in _FIELDS}

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> AdvertisedKey:
        """Read a card that somebody else wrote.

        Raises:
            ConfigError: It is none.
        """
        try:
            card = cls(**{name: base64.b64decode(str(table[name]), validate=True) for name in _FIELDS})
        except MALFORMED as error:
            raise ConfigError("a client's card for masked counts is damaged") from error
        if len(card.public) != 32:
            raise ConfigError("a client's card for masked counts is damaged")
        return card


_FIELDS = ("public", "signature", "certificate")


def read_certificates(path: str | Path) -> list[x509.Certificate]:
    """Read the certificates of a file (PEM).

    Raises:
        ConfigError: It cannot be read or holds none.
    """
    try:
        return x509.load_pem_x509_certificates(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: this certificate cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: this is no certificate; `fedvision certificates` makes one") from error


def advertise_key(
    run: str, private: X25519PrivateKey, node_key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> AdvertisedKey:
    """Return a client's card for a run.

    Raises:
        ConfigError: The certificate is another key's.
    """
    if certificate.public_key() != node_key.public_key():
        raise ConfigError("share.certificate is not of the key superlink.key; name the client.crt beside it")
    public = private.public_key().public_bytes_raw()
    return AdvertisedKey(
        public=public,
        signature=node_key.sign(_signed(run, public), ec.ECDSA(hashes.SHA384())),
        certificate=certificate.public_bytes(Encoding.DER),
    )


def holder(card: AdvertisedKey, run: str, authorities: Sequence[x509.Certificate]) -> str:
    """Return the name of the client whose card it is, once that is proven.

    Raises:
        ConfigError: No authority vouches for it, its certificate is not valid now, it was signed for another
            run, or nothing secret can be agreed with its key; the sentence names the client.
    """
    try:
        certificate = x509.load_der_x509_certificate(card.certificate)
        name = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        key = certificate.public_key()
    except Exception as error:  # what somebody else wrote can be wrong in any of X.509's ways
        raise ConfigError("a client's certificate for masked counts is damaged") from error
    if not any(_issued(certificate, authority) for authority in authorities):
        raise ConfigError(f"{name}'s certificate for masked counts is not of this federation's authority")
    if not certificate.not_valid_before_utc <= datetime.now(UTC) < certificate.not_valid_after_utc:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        raise ConfigError(
            f"{name}'s certificate for masked counts is valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d} "
            "only; it needs a new one (or is a clock wrong?)"
        )
    # A server's certificate, which its machine holds, must not pass for a client's.
    if ExtendedKeyUsageOID.CLIENT_AUTH not in uses or not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{name}'s certificate for masked counts is no client's")
    try:
        key.verify(card.signature, _signed(run, card.public), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise ConfigError(f"{name}'s card for masked counts is not signed by its key for this run") from None
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(card.public))
    except ValueError:  # a point of low order: every client of its group would fail
        raise ConfigError(
            f"{name}'s key for masked counts is one with which nothing secret is agreed"
        ) from None
    return name


def node_key(card: AdvertisedKey) -> bytes:
    """Return the public key (PEM) in a card's certificate.

    Raises:
        ConfigError: It holds none.
    """
    try:
        key = x509.load_der_x509_certificate(card.certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("a client's certificate for masked counts is damaged") from error
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def common_name(card: AdvertisedKey) -> str:
    """Return the name in a card's certificate, proven or not, for a message to a person."""
    try:
        subject = x509.load_der_x509_certificate(card.certificate).subject
        return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except MALFORMED:
        return "a client"


def group_name(cards: Sequence[AdvertisedKey]) -> str:
    """Return what names a group of clients: the digest of their keys, whatever their order."""
    return hashlib.sha256(b"".join(sorted(card.public for card in cards))).hexdigest()


def mask(
    numbers: NDArray[np.uint64], private: X25519PrivateKey, cards: Sequence[AdvertisedKey], context: bytes
) -> NDArray[np.uint64]:
    """Return numbers [N] plus this client's masks [N], modulo 2^64.

    The sum over all clients of the group is that of the bare numbers. One client's result alone, or a sum
    that lacks one client, is as good as random to whoever knows no secret of the group.

    Args:
        numbers: uint64 [N].
        private: This client's key of the run.
        cards: Those of the whole group, proven; this client's is passed over.
        context: What is summed. The same context twice shows how the numbers differ: never use it again for
            other numbers.
    """
    own = private.public_key().public_bytes_raw()
    masked = numbers.astype(np.uint64, copy=True)
    for card in cards:
        if card.public == own:
            continue
        secret = private.exchange(X25519PublicKey.from_public_bytes(card.public))
        # Both keys are in the label, as RFC 7748 advises where public keys are not otherwise bound.
        label = b"\n".join([*sorted([own, card.public]), group_name(cards).encode(), context])
        noise = _stream(secret, label, len(numbers))
        # Modulo 2^64 by the type itself.
        masked = masked + noise if own < card.public else masked - noise
    return masked


def _stream(secret: bytes, label: bytes, count: int) -> NDArray[np.uint64]:
    """Return ``count`` numbers from ChaCha20 (RFC 8439) under a key that HKDF (RFC 5869) derives."""
    key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_SIGNED + label).derive(secret)
    # The key serves for this stream alone, so a fixed nonce is right.
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * count)), _NUMBER).astype(np.uint64)


def _signed(run: str, public: bytes) -> bytes:
    return _SIGNED + run.encode() + b"\n" + public


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
