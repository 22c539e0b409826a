"""The query phase: every client computes a statistic of its images, and the sums are added exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedvision.aggregation.fixed_point import FixedPoint, FixedPointSum, wrapped
from fedvision.algorithms.base import Answer
from fedvision.errors import InvalidUpdate
from fedvision.flower import statistic_codec
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.statistic_codec import STATISTIC, StatisticReply, StatisticRequest
from fedvision.server.phase_result import PhaseResult


@dataclass(frozen=True, kw_only=True)
class StatisticResult:
    """A statistic's sums over the clients that answered."""

    sums: Answer
    """By name; empty where no client replied."""
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
        """Return the entry of the run's record: who is in the sums, and their shapes."""
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
    """Query clients for a statistic and add up their sums.

    Args:
        grid: Carries the messages.
        client_registry: The federation's members.
        request: The statistic.
        clients: Who is queried.
        timeout: Seconds after which who is missing is not waited for; None waits for all.
    """
    content, bits = statistic_codec.encode_request(request), request.query.bits
    messages = [Message(content, client_registry.node(client), STATISTIC) for client in clients]
    exchange = PhaseResult(client_registry=client_registry, stage="statistic", decoder=_Decoder(bits))
    replies = dict(exchange.send(grid, messages, ordered=True, timeout=timeout))
    adding = _Adding(client_registry.groups, bits)
    adding.add_all(replies)
    refused = [
        {"client": c, "stage": "statistic", "kind": "refused", "reason": why}
        for c, why in sorted(adding.refused.items())
    ]
    return StatisticResult(
        sums=adding.sum.total.values(),
        clients=tuple(sorted(adding.clients)),
        examples=adding.examples,
        refused=(*exchange.refused, *refused),
        down=exchange.down,
        up=exchange.up,
    )


class _Decoder:
    """Decodes a client's sums, whose numbers have so many bits."""

    bytes_saved = 0

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def decode(self, message: Message, client: int) -> tuple[int, StatisticReply]:
        """Return the client and its sums.

        Raises:
            InvalidUpdate: They cannot be used.
        """
        try:
            return client, statistic_codec.decode_reply(message.content, self._bits)
        except ValueError as error:
            raise InvalidUpdate(client, "statistic", str(error)) from error


@dataclass(kw_only=False)
class _Adding:
    """Adds up replies, bare ones one by one and masked ones by their group."""

    groups: Mapping[str, Collection[int]]
    bits: int
    sum: FixedPointSum = field(init=False)
    clients: list[int] = field(default_factory=list)
    examples: int = 0
    refused: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sum = FixedPointSum(self.bits)

    def add_all(self, replies: Mapping[int, StatisticReply]) -> None:
        """Add what can be added; whose sums have other shapes than most clients' are refused."""
        usual = Counter(reply.sums.signature for reply in replies.values()).most_common(1)
        masked: dict[str, dict[int, StatisticReply]] = {}
        for client, reply in sorted(replies.items()):
            if reply.sums.signature != usual[0][0]:
                self.refused[client] = "its sums have other names or shapes than those of other clients"
            elif reply.group:
                masked.setdefault(reply.group, {})[client] = reply
            else:
                self._add([client], reply.sums, reply.examples)
        for group, members in masked.items():
            self._add_group(group, members)

    def _add(self, clients: list[int], sums: FixedPoint, examples: int) -> None:
        try:
            self.sum.add(sums)
        except ValueError as error:
            self.refused |= dict.fromkeys(clients, str(error))
            return
        self.clients += clients
        self.examples += examples

    def _add_group(self, group: str, members: Mapping[int, StatisticReply]) -> None:
        """Add a group's sum, in which the masks cancel, modulo 2^bits."""
        if set(self.groups.get(group, ())) != set(members):
            why = "its sums are masked, and others of its group did not answer"
            self.refused |= dict.fromkeys(members, why)
            return
        replies = list(members.values())
        examples = sum(reply.examples for reply in replies)
        if int(np.array([reply.masked_examples for reply in replies], np.int64).sum()) != examples:
            why = "the masked sums of its group give no sum: somebody masked otherwise"
            self.refused |= dict.fromkeys(members, why)
            return
        total = {
            name: wrapped(np.sum([reply.sums.numbers[name] for reply in replies], axis=0), self.bits)
            for name in replies[0].sums.numbers
        }
        self._add(sorted(members), FixedPoint(numbers=total, whole=replies[0].sums.whole), examples)
