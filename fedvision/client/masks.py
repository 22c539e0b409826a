"""What a client keeps of its masked sums: the key of a run, the group it belongs to, what it told.

The file lies in the client's ``state`` and is its owner's alone. Who has it can read what this client masked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fedvision.client.config import ClientConfig
from fedvision.client.reach import read_key
from fedvision.deploy import masking
from fedvision.deploy.masking import Card
from fedvision.errors import ConfigError

log = logging.getLogger("fedvision.deploy")
_GROUPS = 10
"""Groups for which a client masks its counts in one run: every dropout makes a new one."""


class Masks:
    """A client's masks in one run.

    Args:
        file: Where key and group are kept.
        run: The run's key.
        client: The machine's own file.
    """

    def __init__(self, file: Path, run: str, client: ClientConfig) -> None:
        self._file, self._run, self._client = file, run, client
        self._kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if not self._kept:
            self._keep(private=X25519PrivateKey.generate().private_bytes_raw().hex(), groups=0)
        self._private = X25519PrivateKey.from_private_bytes(bytes.fromhex(self._kept["private"]))

    def card(self) -> Card:
        """Return what the others of a group are shown.

        Raises:
            ConfigError: Key or certificate cannot be used.
        """
        (certificate, *_) = masking.read_certificates(self._client.share.certificate)
        return masking.make_card(self._run, self._private, read_key(self._client.superlink.key), certificate)

    @property
    def group(self) -> str:
        """The name of the group that this client masked for last, empty before that."""
        return masking.group_name(self._cards()) if self._kept.get("cards") else ""

    def tell(self, tables: Sequence[Mapping[str, object]], counts: Sequence[int]) -> list[int]:
        """Return this client's class counts, masked for a group; the same group is told the same.

        Args:
            tables: The group's cards as they came.
            counts: Images of each class [C].

        Returns:
            [C] numbers of 64 bits, signed.

        Raises:
            ConfigError: The group is too small, lacks this client, or holds somebody who is not proven.
        """
        cards = [Card.from_table(table) for table in tables]
        names = self._prove(cards)
        if self.group == masking.group_name(cards):
            return list(self._kept["told"])
        if self._kept["groups"] >= _GROUPS:
            raise ConfigError(
                f"this client masked its class counts for {_GROUPS} groups already and does not go on; begin "
                "a new run with clients that stay"
            )
        told = signed(masking.mask(_unsigned(counts), self._private, cards, b"counts"))
        self._keep(groups=self._kept["groups"] + 1, cards=[card.to_table() for card in cards], told=told)
        log.warning("class counts are masked for a sum over %s", ", ".join(names))
        return told

    def hide(self, confusion: NDArray[np.int64], question: bytes) -> NDArray[np.int64]:
        """Return confusion counts [C, C], masked for this client's group.

        Args:
            confusion: The bare counts.
            question: What was measured, the model included: masks serve for one question.
        """
        context = b"confusion\n" + hashlib.sha256(question).digest()
        masked = masking.mask(_unsigned(confusion.ravel()), self._private, self._cards(), context)
        return masked.view(np.int64).reshape(confusion.shape)

    def _cards(self) -> list[Card]:
        return [Card.from_table(table) for table in self._kept["cards"]]

    def _prove(self, cards: Sequence[Card]) -> list[str]:
        """Return the names of a group's clients, sorted."""
        if len(cards) < masking.FEWEST:
            raise ConfigError(
                f"a sum over {len(cards)} masked clients hides too little; {masking.FEWEST} are needed"
            )
        share, link = self._client.share, self._client.superlink
        authorities = masking.read_certificates(share.authority or link.root_certificate)
        names = sorted(masking.holder(card, self._run, authorities) for card in cards)
        if len(set(names)) < len(names) or len({card.public for card in cards}) < len(cards):
            raise ConfigError("the server named a client twice in a sum of masked counts; nothing is told")
        if self._private.public_key().public_bytes_raw() not in {card.public for card in cards}:
            raise ConfigError("the server asked for a sum of masked counts that lacks this client")
        return names

    def _keep(self, **facts: Any) -> None:
        self._kept |= facts
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self._file.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self._kept, file)
        os.replace(part, self._file)


def signed(numbers: NDArray[np.uint64]) -> list[int]:
    """Return numbers of 64 bits as they travel: signed."""
    return [int(number) for number in numbers.view(np.int64)]


def _unsigned(numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint64]:
    return np.asarray(numbers, np.int64).view(np.uint64)
