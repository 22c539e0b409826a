"""The server's part in masked class counts: who waits for a group, what a group's sum is, what is kept of it.

A client belongs to one group for the whole run: two sums that differ by one client would tell his counts. So
who comes later waits until ``FEWEST`` have come, and a group that lacks somebody gives no further sums.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.x509 import Certificate
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvision.deploy import masking
from fedvision.deploy.masking import FEWEST, Card
from fedvision.flower import sharing
from fedvision.flower.codec import RosterEntry
from fedvision.flower.exchange import Exchange
from fedvision.flower.roster import Unasked
from fedvision.flower.sharing import added

log = logging.getLogger("fedvision.deploy")


@dataclass(frozen=True, kw_only=True)
class MaskedSum:
    """What is known of a group."""

    group: str
    """Its name."""
    clients: tuple[int, ...]
    """Its clients, rising."""
    counts: tuple[int, ...]
    """Training images of each class [C] over all of them."""

    def to_table(self) -> dict[str, Any]:
        """Return plain values."""
        return {"group": self.group, "clients": list(self.clients), "counts": list(self.counts)}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> MaskedSum:
        """Read what ``to_table`` wrote."""
        return cls(group=str(table["group"]), clients=tuple(table["clients"]), counts=tuple(table["counts"]))


class MaskedSums:
    """The masked clients of a run.

    Args:
        run: The run's key.
        classes: C.
        kept: Sums of an earlier server of this run.
        authorities: Who vouches for clients; none leaves that to the clients, who ask the same.
    """

    def __init__(
        self, run: str, classes: int, kept: Sequence[MaskedSum], authorities: Sequence[Certificate]
    ) -> None:
        self._run, self._classes, self._authorities = run, classes, authorities
        self.sums = list(kept)
        self.waiting: dict[int, tuple[int, RosterEntry]] = {}
        """Clients that are in no sum yet: node and what it said."""

    def __contains__(self, client: int) -> bool:
        return any(client in known.clients for known in self.sums)

    @property
    def total(self) -> NDArray[np.int64]:
        """Training images of each class [C] over all sums."""
        rows = np.array([known.counts for known in self.sums], np.int64)
        return added(rows.reshape(len(rows), self._classes))

    def expect(self, client: int, node: int, entry: RosterEntry) -> None:
        """Let a client wait for a group, unless it is in one.

        Raises:
            ConfigError: It cannot prove who it is.
        """
        if client in self:
            return
        if self._authorities:
            masking.holder(Card.from_table(entry.card), self._run, self._authorities)
        self.waiting[client] = (node, entry)

    def leave(self, clients: Sequence[int]) -> None:
        """Forget clients that wait."""
        for client in clients:
            self.waiting.pop(client, None)

    def gather(self, grid: Grid, note: Callable[[int, str], None]) -> MaskedSum | None:
        """Sum over all clients that wait, or over those that are left of them; None where they are too few.

        Args:
            grid: Carries the messages.
            note: Is told who is left out, and why.
        """
        while len(self.waiting) >= FEWEST:
            clients = sorted(self.waiting)
            told, refused = self._ask(grid, clients)
            for client, reason in refused.items():
                del self.waiting[client]
                note(client, reason)
            if not refused:
                return self._sum(clients, told, note)
        return None

    def _ask(self, grid: Grid, clients: Sequence[int]) -> tuple[dict[int, NDArray[np.int64]], dict[int, str]]:
        content = sharing.encode_group([self.waiting[client][1].card for client in clients])
        by_node = {self.waiting[client][0]: client for client in clients}
        exchange = Exchange(roster=Unasked(), stage="data")
        told = {}
        for reply in exchange.send(grid, [Message(content, node, sharing.MASKED) for node in by_node]):
            told[by_node[reply.metadata.src_node_id]] = sharing.decode_masked(reply.content)
        refused = {by_node[item["client"]]: str(item["reason"]) for item in exchange.refused}
        odd = [client for client, numbers in told.items() if len(numbers) != self._classes]
        return told, refused | dict.fromkeys(odd, "its masked class counts are not one for each class")

    def _sum(
        self,
        clients: Sequence[int],
        told: Mapping[int, NDArray[np.int64]],
        note: Callable[[int, str], None],
    ) -> MaskedSum | None:
        counts = added([told[client] for client in clients])
        entries = [self.waiting.pop(client)[1] for client in clients]
        if not sharing.unmasked(counts, sum(entry.images for entry in entries)):
            for client in clients:
                note(client, "the masked class counts of its group give no sum: somebody masked otherwise")
            return None
        group = masking.group_name([Card.from_table(entry.card) for entry in entries])
        found = MaskedSum(group=group, clients=tuple(clients), counts=tuple(counts.tolist()))
        self.sums.append(found)
        return found
