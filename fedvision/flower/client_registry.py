"""Who is in the federation: which node hosts which client, and how many images of each class there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from flwr.serverapp import Grid

from fedvision.flower.codec import ClientInfo

FIRST_NODE = 1000
"""Node of client 0 in a simulation; node ``FIRST_NODE + k`` hosts client k."""


class ClientRegistry(Protocol):
    """The members of a federation."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Training images of each class [C] over all members."""

    @property
    def groups(self) -> Mapping[str, Collection[int]]:
        """Clients whose counts can be read as a sum alone, by their group's name."""

    def __len__(self) -> int:
        """Return the number of members."""

    def client(self, node: int) -> int:
        """Return the client on a node; a node that is no member stands for itself."""

    def node(self, client: int) -> int:
        """Return the node that hosts a client."""

    def present(self, grid: Grid) -> Sequence[int]:
        """Return the clients that can work now, rising."""


@dataclass(frozen=True, kw_only=True)
class SimulatedClientRegistry:
    """A simulation's members: all there at all times, nodes by arithmetic, nothing held for each."""

    clients: int
    """Number of clients."""
    counts: tuple[int, ...]
    """Training images of each class [C] over all clients."""
    groups: ClassVar[Mapping[str, Collection[int]]] = {}
    """Nobody hides anything here."""

    def __len__(self) -> int:
        return self.clients

    def client(self, node: int) -> int:
        """Return the client on a node."""
        return node - FIRST_NODE

    def node(self, client: int) -> int:
        """Return the node that hosts a client."""
        return client + FIRST_NODE

    def present(self, grid: Grid) -> range:
        """Return all clients."""
        return range(self.clients)


class ReportedClientRegistry:
    """Members that sent their client information.

    Args:
        entries: Each node's client information: ``{node: entry}``.
    """

    groups: ClassVar[Mapping[str, Collection[int]]] = {}

    def __init__(self, entries: Mapping[int, ClientInfo]) -> None:
        self._clients = {node: entry.client for node, entry in entries.items()}
        self._nodes = {client: node for node, client in self._clients.items()}
        # Noise may make one member's number negative; over all of them a negative sum means none.
        self.counts: tuple[int, ...] = tuple(
            np.sum([entry.image_counts.counts for entry in entries.values()], axis=0).clip(min=0).tolist()
        )

    def __len__(self) -> int:
        return len(self._nodes)

    def client(self, node: int) -> int:
        """Return the client on a node; a node without client information stands for itself."""
        return self._clients.get(node, node)

    def node(self, client: int) -> int:
        """Return the node that hosts a client."""
        return self._nodes[client]

    def present(self, grid: Grid) -> list[int]:
        """Return the members among the grid's nodes."""
        return sorted(self._clients[node] for node in grid.get_node_ids() if node in self._clients)


class UnknownClients:
    """Members of whom nothing is known: nodes count as clients.

    Args:
        counts: Training images of each class [C] over all members.
    """

    groups: ClassVar[Mapping[str, Collection[int]]] = {}

    def __init__(self, counts: tuple[int, ...] = ()) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return 0

    def client(self, node: int) -> int:
        """Return the node."""
        return node

    def node(self, client: int) -> int:
        """Return the client."""
        return client

    def present(self, grid: Grid) -> list[int]:
        """Return the grid's nodes."""
        return sorted(grid.get_node_ids())
