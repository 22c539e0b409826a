"""The query phase: every client is asked for a statistic of its images, and the sums are added exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvision.aggregation.fixed_point import FixedPointSum, from_fixed_point, shapes
from fedvision.flower import statistic_codec
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.statistic_codec import STATISTIC, StatisticRequest
from fedvision.server.phase_result import PhaseResult


@dataclass(frozen=True, kw_only=True)
class StatisticResult:
    """A statistic's sums over the clients that answered."""

    sums: dict[str, NDArray[np.float64]]
    """By name; empty where nobody answered."""
    clients: tuple[int, ...]
    """Clients in the sums, rising."""
    examples: int
    """Training images in the sums."""
    refused: tuple[dict[str, Any], ...] = ()
    """Client, stage and reason of each answer that is not in them."""
    down: int = 0
    """Bytes of tensors sent."""
    up: int = 0
    """Bytes of tensors received."""

    def facts(self) -> dict[str, Any]:
        """Return what the run's record says: who is in the sums, and their shapes."""
        sizes = {name: list(array.shape) for name, array in self.sums.items()}
        return {"clients": list(self.clients), "examples": self.examples, "shapes": sizes}


def query_statistic(
    grid: Grid,
    client_registry: ClientRegistry,
    request: StatisticRequest,
    *,
    clients: Sequence[int],
    timeout: float | None = None,
) -> StatisticResult:
    """Ask clients for a statistic and add up what they tell.

    Args:
        grid: Carries the messages.
        client_registry: The federation's members.
        request: What they are asked for.
        clients: Who is asked.
        timeout: Seconds after which who is missing is not waited for; None waits for all.
    """
    content = statistic_codec.encode_request(request)
    messages = [Message(content, client_registry.node(client), STATISTIC) for client in clients]
    exchange = PhaseResult(client_registry=client_registry, stage="statistic")
    replies = {
        client_registry.client(reply.metadata.src_node_id): reply.content
        for reply in exchange.send(grid, messages, ordered=True, timeout=timeout)
    }
    adding = _Adding(client_registry.groups)
    adding.add_all(replies)
    refused = [
        {"client": c, "stage": "statistic", "reason": why} for c, why in sorted(adding.refused.items())
    ]
    return StatisticResult(
        sums=from_fixed_point(adding.sum.total),
        clients=tuple(sorted(adding.clients)),
        examples=adding.examples,
        refused=(*exchange.refused, *refused),
        down=exchange.down,
        up=exchange.up,
    )


@dataclass(kw_only=False)
class _Adding:
    """Adds up replies, bare ones one by one and masked ones by their group."""

    groups: Mapping[str, Collection[int]]
    sum: FixedPointSum = field(default_factory=FixedPointSum)
    clients: list[int] = field(default_factory=list)
    examples: int = 0
    refused: dict[int, str] = field(default_factory=dict)

    def add_all(self, replies: Mapping[int, RecordDict]) -> None:
        """Add what can be added; whose sums have other shapes than most clients' are refused."""
        masked: dict[str, dict[int, RecordDict]] = {}
        received: dict[int, tuple[dict[str, NDArray[np.int64]], int]] = {}
        for client, content in replies.items():
            try:
                received[client] = statistic_codec.decode_sums(content)
                if group := statistic_codec.masked_for(content):
                    masked.setdefault(group[0], {})[client] = content
            except (ValueError, KeyError, TypeError) as error:
                self.refused[client] = str(error)
        usual = Counter(_signature(sums) for sums, _ in received.values()).most_common(1)
        for client in sorted(received):
            if _signature(received[client][0]) != usual[0][0]:
                self.refused[client] = "its sums have other names or shapes than those of other clients"
                del received[client]
        for name, members in masked.items():
            self._add_group(
                name, {client: content for client, content in members.items() if client in received}
            )
        hidden = {client for members in masked.values() for client in members}
        for client in sorted(received.keys() - hidden):
            self._add([client], *received[client])

    def _add(self, clients: list[int], sums: Mapping[str, NDArray[np.int64]], examples: int) -> None:
        try:
            self.sum.add(sums)
        except ValueError as error:
            self.refused |= dict.fromkeys(clients, str(error))
            return
        self.clients += clients
        self.examples += examples

    def _add_group(self, group: str, members: Mapping[int, RecordDict]) -> None:
        """Add a group's sum, in which the masks cancel, modulo 2^64."""
        if set(self.groups.get(group, ())) != set(members):
            why = "its sums are masked, and others of its group did not answer"
            self.refused |= dict.fromkeys(members, why)
            return
        received = {client: statistic_codec.decode_sums(content) for client, content in members.items()}
        examples = sum(count for _, count in received.values())
        checks = [found[1] for one in members.values() if (found := statistic_codec.masked_for(one))]
        if int(np.array(checks, np.int64).sum()) != examples:
            why = "the masked sums of its group give no sum: somebody masked otherwise"
            self.refused |= dict.fromkeys(members, why)
            return
        first = next(iter(received.values()))[0]
        total = {name: np.sum([sums[name] for sums, _ in received.values()], axis=0) for name in first}
        self._add(
            sorted(members), {name: np.asarray(array, np.int64) for name, array in total.items()}, examples
        )


def _signature(sums: Mapping[str, NDArray[np.int64]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted(shapes(sums).items()))
