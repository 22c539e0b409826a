"""What a client stores of its masked sums: the key of a run, its group, masked counts, digests of answers.

A client sends its counts for one group of ``MIN_GROUP_SIZE`` or more in a run, never for another one. So
any two groups whose sums are known have no client in common, and no addition or subtraction of sums gives
one over fewer clients. Were it to do so for a second group, of other clients, the two could be subtracted:
four clients in all four groups of three reveal every client's counts. A client that drops out is therefore
waited for: its group's sum is complete when it is back, and the others send the same again.

The rule holds within a run. The counts of a later run are sent anew, for whatever group that run has.

The file lies in the client's ``state`` and is its owner's alone. Who has it can read what this client masked.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedvision.aggregation import masking
from fedvision.aggregation.masking import AdvertisedKey
from fedvision.data.image_counts import ImageCounts
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.connectivity import read_key
from fedvision.errors import ConfigError
from fedvision.files import replace_file
from fedvision.flower import masked_codec

log = logging.getLogger("fedvision.deployment")


class MaskedCounts:
    """A client's masks in one run.

    Args:
        file: Where key and group are kept.
        run: The run's key.
        client: The machine's own file.
    """

    def __init__(self, file: Path, run: str, client: ClientMachineConfig) -> None:
        self._file, self._run, self._client = file, run, client
        self._stored: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if not self._stored:
            self._store(private=X25519PrivateKey.generate().private_bytes_raw().hex())
        self._private = X25519PrivateKey.from_private_bytes(bytes.fromhex(self._stored["private"]))

    def card(self) -> AdvertisedKey:
        """Return what the others of a group are shown.

        Raises:
            ConfigError: Key or certificate cannot be used.
        """
        (certificate, *_) = masking.read_certificates(self._client.share.certificate)
        return masking.advertise_key(
            self._run, self._private, read_key(self._client.superlink.key), certificate
        )

    @property
    def group(self) -> str:
        """The name of the group that this client masked for, empty before that."""
        return masking.group_name(self._cards()) if self._stored.get("cards") else ""

    def answer(self, content: RecordDict, image_counts: ImageCounts) -> RecordDict:
        """Answer a message of type ``masked_codec.MASKED``; ``image_counts`` are of the training images."""
        tables = masked_codec.decode_group(content)
        if masked_codec.agreement_only(content):
            return masked_codec.encode_agreed(self.agree(tables))
        return masked_codec.encode_masked(self.mask_counts(tables, image_counts.numbers()))

    def agree(self, tables: Sequence[Mapping[str, object]]) -> list[dict[str, str]]:
        """Check a group before any counts are sent, and return which one binds this client.

        Returns:
            The cards of the group that it masked for; empty where it is free.

        Raises:
            ConfigError: As for ``mask_counts``.
        """
        self._prove([AdvertisedKey.from_table(table) for table in tables])
        return list(self._stored.get("cards", ()))

    def mask_counts(self, tables: Sequence[Mapping[str, object]], numbers: Sequence[int]) -> list[int]:
        """Return this client's numbers of images, masked for a group; the same for the same group.

        Args:
            tables: The group's cards as they came.
            numbers: ``ImageCounts.numbers`` of its training images [C + 1].

        Returns:
            [C + 1] numbers of 64 bits, signed.

        Raises:
            ConfigError: The group is too small, lacks this client, or holds somebody who is not proven; or
                this client masked for another one.
        """
        cards = [AdvertisedKey.from_table(table) for table in tables]
        names = self._prove(cards)
        if self.group == masking.group_name(cards):
            return list(self._stored["masked_counts"])
        if self.group:
            before = sorted(self._stored["names"])
            raise ConfigError(
                f"this client masked its class counts for a sum over {', '.join(before)}; a sum over "
                f"{', '.join(names)} beside it could reveal counts of single clients; let the same clients "
                "go on, or begin a new run"
            )
        masked_counts: list[int] = self._masked(np.asarray(numbers, np.int64), cards, b"counts").tolist()
        self._store(names=names, cards=[card.to_table() for card in cards], masked_counts=masked_counts)
        log.info("class counts are masked for a sum over %s", ", ".join(names))
        return masked_counts

    def hide(self, numbers: NDArray[np.int64], question: bytes) -> NDArray[np.int64]:
        """Return what was counted [...], masked for this client's group.

        Args:
            numbers: The bare numbers.
            question: What was measured, the model included.

        Raises:
            ConfigError: It was answered before with other numbers, as after a training in between: their
                difference would show what changed, without any mask.
        """
        query, answer = (hashlib.sha256(part).hexdigest() for part in (question, numbers.tobytes()))
        answers = self._stored.get("answers", {})
        if answers.get(query, answer) != answer:
            raise ConfigError(
                "this client counted otherwise before when the server asked the same; a second answer under "
                "the same masks would reveal what changed, and is not sent"
            )
        if query not in answers:
            self._store(answers={**answers, query: answer})
        context = b"confusion\n" + hashlib.sha256(question).digest()
        return self._masked(numbers.ravel(), self._cards(), context).reshape(numbers.shape)

    def _masked(
        self, numbers: NDArray[np.int64], cards: Sequence[AdvertisedKey], context: bytes
    ) -> NDArray[np.int64]:
        return masking.mask(numbers.view(np.uint64), self._private, cards, context).view(np.int64)

    def _cards(self) -> list[AdvertisedKey]:
        return [AdvertisedKey.from_table(table) for table in self._stored["cards"]]

    def _prove(self, cards: Sequence[AdvertisedKey]) -> list[str]:
        """Return the names of a group's clients, sorted."""
        if len(cards) < masking.MIN_GROUP_SIZE:
            raise ConfigError(
                f"a sum over {len(cards)} masked clients hides too little; "
                f"{masking.MIN_GROUP_SIZE} are needed"
            )
        share, link = self._client.share, self._client.superlink
        authorities = masking.read_certificates(share.authority or link.root_certificate)
        names = sorted(masking.holder(card, self._run, authorities) for card in cards)
        if len(set(names)) < len(names) or len({card.public for card in cards}) < len(cards):
            raise ConfigError("the server named a client twice in a sum of masked counts; nothing is sent")
        if self._private.public_key().public_bytes_raw() not in {card.public for card in cards}:
            raise ConfigError("the server requested a sum of masked counts that lacks this client")
        return names

    def _store(self, **facts: Any) -> None:
        self._stored |= facts
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self._file, json.dumps(self._stored), mode=0o600)
