"""Masks that cancel: sums are exact, single vectors look random, and nobody is let in without a proof."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedvision.aggregation import masking
from fedvision.aggregation.masking import (
    AdvertisedKey,
    advertise_key,
    group_name,
    holder,
    mask,
    read_certificates,
)
from fedvision.deployment import certificates
from fedvision.deployment.client.connectivity import read_key
from fedvision.errors import ConfigError
from tests.deployment.server.certificate_dates import make_at


def keys(count: int) -> tuple[list[X25519PrivateKey], list[AdvertisedKey]]:
    """Return keys and cards whose proofs nobody reads."""
    private = [X25519PrivateKey.generate() for _ in range(count)]
    return private, [
        AdvertisedKey(public=key.public_key().public_bytes_raw(), signature=b"", certificate=b"")
        for key in private
    ]


def masked(values: NDArray[np.uint64], context: bytes = b"counts") -> NDArray[np.uint64]:
    """Return each client's numbers [K, N] as it would send them."""
    private, cards = keys(len(values))
    return np.array([mask(row, key, cards, context) for row, key in zip(values, private, strict=True)])


@given(data=st.data())
@settings(max_examples=25)
def test_the_sum_is_exact_for_any_numbers_any_clients_and_any_order(data: st.DataObject) -> None:
    clients = data.draw(st.integers(2, 6), "clients")
    numbers = st.integers(0, 2**40)
    rows = data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=clients, max_size=clients))
    order = data.draw(st.permutations(range(clients)))
    rows_masked = masked(np.array(rows, np.uint64))
    total = np.zeros(3, np.uint64)
    for client in order:
        total = total + rows_masked[client]
    assert total.tolist() == np.sum(rows, axis=0).tolist()


def test_the_order_of_the_cards_is_no_matter_and_the_context_is() -> None:
    private, cards = keys(4)
    numbers = np.arange(5, dtype=np.uint64)
    once = mask(numbers, private[0], cards, b"a")
    assert np.array_equal(mask(numbers, private[0], cards[::-1], b"a"), once)
    assert not np.array_equal(mask(numbers, private[0], cards, b"b"), once)
    # Another group means fresh masks towards the same clients: those of two pairs do not make a group's.
    nothing = np.zeros(5, np.uint64)
    pairs = [mask(nothing, private[0], [cards[0], cards[other]], b"a") for other in (1, 2)]
    assert not np.array_equal(mask(nothing, private[0], cards[:3], b"a"), pairs[0] + pairs[1])


def test_masked_values_look_random() -> None:
    size = 20_000
    rows_masked = masked(np.zeros((3, size), np.uint64))
    for row in rows_masked:
        bits = np.unpackbits(row.view(np.uint8))
        # A fair coin's share of ones lies within five standard deviations.
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
        octets = np.bincount(row.view(np.uint8), minlength=256)
        chance = ((octets - octets.mean()) ** 2 / octets.mean()).sum()
        # Chi square with 255 degrees of freedom: mean 255, standard deviation sqrt(510).
        assert abs(chance - 255) < 5 * np.sqrt(510)
        assert len(np.unique(row)) == size


@pytest.mark.parametrize("missing", range(4))
def test_without_one_client_the_rest_is_noise(missing: int) -> None:
    values = np.arange(4 * 50, dtype=np.uint64).reshape(4, 50)
    rows_masked = masked(values)
    rest = [client for client in range(4) if client != missing]
    off = rows_masked[rest].sum(0) - values[rest].sum(0)
    # Of 50 numbers of 64 bits not one is right, nor small.
    assert (off != 0).all()
    assert np.minimum(off, -off.view(np.int64).view(np.uint64)).min() > 2**40
    assert np.array_equal(rows_masked.sum(0), values.sum(0))


def test_two_groups_of_the_same_clients_do_not_mix() -> None:
    values = np.ones((3, 20), np.uint64)
    first, second = masked(values), masked(values)
    assert ((first[0] + second[1] + second[2]) != 3).all()


def card_of(pki: Path, name: str, run: str = "r1") -> AdvertisedKey:
    own = pki / "clients" / name
    (certificate,) = read_certificates(own / "client.crt")
    return advertise_key(run, X25519PrivateKey.generate(), read_key(str(own / "client.key")), certificate)


def test_a_card_names_its_client_and_survives_the_way(pki: Path) -> None:
    authority = read_certificates(pki / "ca.crt")
    card = card_of(pki, "north")
    assert AdvertisedKey.from_table(card.to_table()) == card
    assert holder(card, "r1", authority) == "north"
    assert group_name([card, card_of(pki, "south")]) != group_name([card, card_of(pki, "south")])


def test_what_a_server_could_forge_is_refused(pki: Path, strangers: Path) -> None:
    authority = read_certificates(pki / "ca.crt")
    north, south = card_of(pki, "north"), card_of(pki, "south")
    mine = X25519PrivateKey.generate().public_key().public_bytes_raw()
    forged = {
        "not signed by its key": [
            # a key of the server's own under a client's certificate and signature
            AdvertisedKey(public=mine, signature=north.signature, certificate=north.certificate),
            AdvertisedKey(public=north.public, signature=south.signature, certificate=north.certificate),
            card_of(pki, "north", run="r2"),
        ],
        "not of this federation's authority": [card_of(strangers, "stranger")],
        "damaged": [AdvertisedKey(public=mine, signature=b"", certificate=b"nothing")],
    }
    for sentence, cards in forged.items():
        for card in cards:
            with pytest.raises(ConfigError, match=sentence):
                holder(card, "r1", authority)


def test_the_servers_own_certificate_makes_no_client(pki: Path) -> None:
    (certificate,) = read_certificates(pki / "server/server.crt")
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key((pki / "server/server.key").read_bytes(), None)
    card = advertise_key("r1", X25519PrivateKey.generate(), key, certificate)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is no client's"):
        holder(card, "r1", read_certificates(pki / "ca.crt"))


def test_a_certificate_of_another_time_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_at(tmp_path, monkeypatch, datetime.now(UTC) - timedelta(days=10))
    with pytest.raises(ConfigError, match=r"^north's certificate for masked counts is valid from"):
        holder(card_of(tmp_path, "north"), "r1", read_certificates(tmp_path / "ca.crt"))


def test_a_certificate_of_another_key_is_refused_before_anything_is_sent(pki: Path) -> None:
    (certificate,) = read_certificates(pki / "clients/south/client.crt")
    key = read_key(str(pki / "clients/north/client.key"))
    with pytest.raises(ConfigError, match=r"share.certificate is not of the key superlink.key"):
        advertise_key("r1", X25519PrivateKey.generate(), key, certificate)


@pytest.mark.parametrize("table", [{}, {"public": "!", "signature": "", "certificate": ""}])
def test_a_damaged_card_is_a_sentence(table: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="is damaged"):
        AdvertisedKey.from_table(table)
    short = AdvertisedKey(public=b"short", signature=b"", certificate=b"").to_table()
    with pytest.raises(ConfigError, match="is damaged"):
        AdvertisedKey.from_table(short)


def test_a_key_with_which_nothing_secret_is_agreed_is_refused(pki: Path) -> None:
    public, key = bytes(32), read_key(str(pki / "clients/north/client.key"))
    signature = key.sign(masking._signed("r1", public), ec.ECDSA(hashes.SHA384()))
    card = AdvertisedKey(public=public, signature=signature, certificate=card_of(pki, "north").certificate)
    with pytest.raises(ConfigError, match="north's key for masked counts is one with which nothing secret"):
        holder(card, "r1", read_certificates(pki / "ca.crt"))


def test_a_certificate_of_an_unknown_kind_is_refused(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, authority = card_of(pki, "north"), read_certificates(pki / "ca.crt")

    def unknown(data: bytes) -> None:
        raise UnsupportedAlgorithm("a curve that nobody knows")

    monkeypatch.setattr(masking.x509, "load_der_x509_certificate", unknown)
    with pytest.raises(ConfigError, match="certificate for masked counts is damaged"):
        holder(card, "r1", authority)


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.crt: this certificate cannot be read"):
        read_certificates(tmp_path / "none.crt")
    (tmp_path / "odd.crt").write_text("nothing")
    with pytest.raises(ConfigError, match=r"odd.crt: this is no certificate"):
        read_certificates(tmp_path / "odd.crt")


def test_an_intermediate_does_not_vouch_for_others(pki: Path) -> None:
    # Issued by north's key, not by the authority: a client cannot make further clients.
    key = read_key(str(pki / "clients/north/client.key"))
    (own,) = read_certificates(pki / "clients/north/client.crt")
    child = certificates._issue(
        certificates.Authority(own, key), "puppet", key, 1, ExtendedKeyUsageOID.CLIENT_AUTH, []
    )
    card = advertise_key("r1", X25519PrivateKey.generate(), key, child)
    with pytest.raises(ConfigError, match=r"puppet's certificate .* not of this federation's authority"):
        holder(card, "r1", read_certificates(pki / "ca.crt"))
    assert masking.MIN_GROUP_SIZE == 3
