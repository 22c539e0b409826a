"""Clients that a round may select: the members without those that are busy or were set aside."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, overload

from flwr.app import Message
from flwr.serverapp import Grid

from fedvision.flower.client_registry import ClientRegistry


class Excluding(Sequence[int]):
    """A rising sequence of clients without some; a range of a million is not unrolled.

    Args:
        clients: Rising.
        excluded: Those to leave out; others than the sequence's are no matter.
    """

    def __init__(self, clients: Sequence[int], excluded: Iterable[int]) -> None:
        self._clients = clients
        found = [(bisect.bisect_left(clients, client), client) for client in sorted(set(excluded))]
        self._gaps = [place for place, gone in found if place < len(clients) and clients[place] == gone]
        # Before the gap with number i there are this many clients that are left.
        self._left = [place - number for number, place in enumerate(self._gaps)]

    def __len__(self) -> int:
        return len(self._clients) - len(self._gaps)

    def __contains__(self, client: object) -> bool:
        if not isinstance(client, int):
            return False
        place = bisect.bisect_left(self, client)
        return place < len(self) and self[place] == client

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        if place < 0:
            place += len(self)
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._clients[place + bisect.bisect_right(self._left, place)]


class AvailableClients:
    """A registry whose members are all there, but not all available.

    Args:
        client_registry: The members.
    """

    def __init__(self, client_registry: ClientRegistry) -> None:
        self.client_registry = client_registry
        self.excluded: frozenset[int] = frozenset()
        """Clients that are not available."""

    def __len__(self) -> int:
        return len(self.client_registry)

    @property
    def counts(self) -> tuple[int, ...]:
        """Training images of each class [C] over all members."""
        return self.client_registry.counts

    @property
    def groups(self) -> Mapping[str, Collection[int]]:
        """Clients whose counts can be read as a sum alone, by their group's name."""
        return self.client_registry.groups

    def client(self, node: int) -> int:
        """Return the client on a node."""
        return self.client_registry.client(node)

    def node(self, client: int) -> int:
        """Return the node that hosts a client."""
        return self.client_registry.node(client)

    def present(self, grid: Grid) -> Sequence[int]:
        """Return the available clients, rising."""
        here = self.client_registry.present(grid)
        return Excluding(here, self.excluded) if self.excluded else here


class AvailableNodes(Grid):
    """A Grid that shows a strategy the available nodes, and nothing else.

    Args:
        grid: The carrier.
        client_registry: Who is where.
        excluded: Clients to leave out.
    """

    def __init__(self, grid: Grid, client_registry: ClientRegistry, excluded: frozenset[int]) -> None:
        self._grid, self._roster, self._excluded = grid, client_registry, excluded

    def get_node_ids(self) -> Iterable[int]:
        """Return the available nodes, in the carrier's order."""
        nodes = self._grid.get_node_ids()
        if not self._excluded:
            return nodes
        return [node for node in nodes if self._roster.client(node) not in self._excluded]

    def set_run(self, run: Any) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Facts of the run."""
        return self._grid.run

    def create_message(self, *args: Any, **named: Any) -> Message:
        """Pass on."""
        return self._grid.create_message(*args, **named)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pass on."""
        return self._grid.send_and_receive(messages, timeout=timeout)
