"""The server's part in masked class counts: who waits for a group, what a group's sum is, what is kept.

A client belongs to one group for the whole run, which it sees to itself (``client.masked_counts``): groups
that overlap could be subtracted from each other. So all clients that wait have to agree before any counts
are sent; who is away or refuses is left out then. Who drops out later is waited for: its group has no sum
before it is back. Who comes later waits until ``MIN_GROUP_SIZE`` have come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.x509 import Certificate
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvision.aggregation import masking
from fedvision.aggregation.masking import MIN_GROUP_SIZE, AdvertisedKey
from fedvision.data.image_counts import ImageCounts, PerImage
from fedvision.deployment.server.keyring import fingerprint
from fedvision.errors import MALFORMED, ConfigError
from fedvision.flower import masked_codec
from fedvision.flower.client_registry import UnknownClients
from fedvision.flower.codec import ClientInfo
from fedvision.flower.masked_codec import added
from fedvision.server.phase_result import PhaseResult, Undecoded


@dataclass(frozen=True, kw_only=True)
class MaskedSum:
    """What is known of a group."""

    group: str
    """Its name."""
    clients: tuple[int, ...]
    """Its clients, rising."""
    image_counts: ImageCounts
    """Training images of all of them together."""

    def to_table(self) -> dict[str, Any]:
        """Return plain values."""
        return {"group": self.group, "clients": list(self.clients), **self.image_counts.to_table()}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> MaskedSum:
        """Read what ``to_table`` wrote."""
        return cls(
            group=str(table["group"]),
            clients=tuple(table["clients"]),
            image_counts=ImageCounts.from_table(table),
        )


class MaskedSums:
    """The masked clients of a run.

    Args:
        run: The run's key.
        classes: C.
        stored: Sums of an earlier server of this run.
        authorities: Who vouches for clients; none leaves that to the clients, who check the same.
        per_image: What an image adds to class counts.
    """

    def __init__(
        self,
        run: str,
        classes: int,
        stored: Sequence[MaskedSum],
        authorities: Sequence[Certificate],
        *,
        per_image: PerImage = "one class",
    ) -> None:
        self._run, self._classes, self._authorities = run, classes, authorities
        self._per_image = per_image
        self.sums = list(stored)
        self.waiting: dict[int, tuple[int, ClientInfo]] = {}
        """Clients that are in no sum yet: node and its reply."""
        self.missing: list[str] = []
        """Names of clients without whom others, whose masked counts are there already, have no sum."""
        self._stuck: frozenset[int] = frozenset()

    def __contains__(self, client: int) -> bool:
        return any(client in known.clients for known in self.sums)

    @property
    def total(self) -> NDArray[np.int64]:
        """Training images of each class [C] over all sums."""
        rows = np.array([known.image_counts.counts for known in self.sums], np.int64)
        return added(rows.reshape(len(rows), self._classes))

    def expect(self, client: int, node: int, entry: ClientInfo, key: str) -> None:
        """Let a client wait for a group, unless it is in one.

        Args:
            client: Its number.
            node: Flower's number of it.
            entry: What it reports of itself.
            key: Fingerprint of the key with which it signs its calls. All clients of a group see all cards:
                with one that somebody else shows as its own there would be a sum for nobody.

        Raises:
            ConfigError: It cannot prove who it is.
        """
        if client in self:
            return
        card = AdvertisedKey.from_table(entry.card)
        if self._authorities:
            masking.holder(card, self._run, self._authorities)
        if fingerprint(masking.node_key(card)) != key:
            raise ConfigError("its card for masked counts is of another client's key")
        self.waiting[client] = (node, entry)

    def leave(self, clients: Sequence[int]) -> None:
        """Forget clients that wait."""
        for client in clients:
            self.waiting.pop(client, None)

    def gather(self, grid: Grid, note: Callable[[int, str], None]) -> MaskedSum | None:
        """Sum over all clients that wait, or over those that are left of them; None where they are too few.

        Args:
            grid: Carries the messages.
            note: Called with who is left out, and why.
        """
        while len(self.waiting) >= MIN_GROUP_SIZE and self._stuck != frozenset(self.waiting):
            bound, refused = self._agree(grid)
            clients = () if refused else self._next_group(bound)
            if clients:
                masked, refused = self._collect(grid, clients)
                if not refused:
                    return self._sum(clients, masked, note)
            for client, reason in refused.items():
                del self.waiting[client]
                note(client, reason)
            if not refused:
                self._stuck = frozenset(self.waiting)
        return None

    def _agree(self, grid: Grid) -> tuple[dict[int, list[AdvertisedKey]], dict[int, str]]:
        """Query the agreement of all that wait; return the cards that bind each, and refusals."""
        bound: dict[int, list[AdvertisedKey]] = {}
        replies, refused = self._send(grid, sorted(self.waiting), agreement_only=True)
        for client, content in replies.items():
            try:
                bound[client] = [
                    AdvertisedKey.from_table(table) for table in masked_codec.decode_group(content)
                ]
            except (ConfigError, *MALFORMED):
                refused[client] = "its agreement to a masked sum is damaged"
        return bound, refused

    def _next_group(self, bound: Mapping[int, Sequence[AdvertisedKey]]) -> tuple[int, ...]:
        """Return the clients of a group that is bound and complete, else all that are free, rising.

        A client that has sent nothing yet may be named in a group that binds others: it is kept for that one.
        """
        self.missing = []
        here = {self._card(client).public: client for client in bound}
        for group in {masking.group_name(cards): cards for cards in bound.values() if cards}.values():
            members = [here.get(card.public, -1) for card in group]
            name = masking.group_name(group)
            if all(m in bound and (not bound[m] or masking.group_name(bound[m]) == name) for m in members):
                return tuple(sorted(members))
            self.missing += [masking.common_name(card) for card in group if card.public not in here]
        named = {card.public for cards in bound.values() for card in cards}
        free = sorted(client for client in bound if self._card(client).public not in named)
        return tuple(free) if len(free) >= MIN_GROUP_SIZE else ()

    def _card(self, client: int) -> AdvertisedKey:
        return AdvertisedKey.from_table(self.waiting[client][1].card)

    def _send(
        self, grid: Grid, clients: Sequence[int], *, agreement_only: bool = False
    ) -> tuple[dict[int, RecordDict], dict[int, str]]:
        """Send some clients' cards to all of them; return the replies and the refusals, by client."""
        cards = [self.waiting[client][1].card for client in clients]
        content = masked_codec.encode_group(cards, agreement_only=agreement_only)
        by_node = {self.waiting[client][0]: client for client in clients}
        exchange = PhaseResult(client_registry=UnknownClients(), stage="data", decoder=Undecoded())
        messages = [Message(content, node, masked_codec.MASKED) for node in by_node]
        replies = {by_node[r.metadata.src_node_id]: r.content for r in exchange.send(grid, messages)}
        return replies, {by_node[item["client"]]: str(item["reason"]) for item in exchange.refused}

    def _collect(
        self, grid: Grid, clients: Sequence[int]
    ) -> tuple[dict[int, NDArray[np.int64]], dict[int, str]]:
        replies, refused = self._send(grid, clients)
        masked: dict[int, NDArray[np.int64]] = {}
        for client, content in replies.items():
            with suppress(KeyError, ValueError):
                masked[client] = masked_codec.decode_masked(content)
        odd = [client for client in replies if len(masked.get(client, ())) != self._classes + 1]
        reason = "its masked numbers are not one for each class and one for its images"
        return masked, refused | dict.fromkeys(odd, reason)

    def _sum(
        self,
        clients: Sequence[int],
        masked: Mapping[int, NDArray[np.int64]],
        note: Callable[[int, str], None],
    ) -> MaskedSum | None:
        total = masked_codec.unmasked(added([masked[client] for client in clients]), self._per_image)
        entries = [self.waiting.pop(client)[1] for client in clients]
        if total is None:
            for client in clients:
                note(client, "the masked class counts of its group give no sum: somebody masked otherwise")
            return None
        group = masking.group_name([AdvertisedKey.from_table(entry.card) for entry in entries])
        found = MaskedSum(group=group, clients=tuple(clients), image_counts=total)
        self.sums.append(found)
        return found
