"""Who is in the federation: which node hosts which client, and how many images of each class there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from flwr.serverapp import Grid

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


class UnknownClients:
    """Members of whom nothing is known: nodes count as clients."""

    counts: tuple[int, ...] = ()
    groups: ClassVar[Mapping[str, Collection[int]]] = {}

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
