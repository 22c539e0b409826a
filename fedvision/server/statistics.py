"""The query phase: every client computes a statistic of its images, and the sums are added exactly."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvision.aggregation.fixed_point import FixedPoint, FixedPointSum, Signature, wrapped
from fedvision.algorithms.base import Answer
from fedvision.errors import InvalidUpdate
from fedvision.flower import query_codec
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.query_codec import STATISTIC, StatisticReply, StatisticRequest
from fedvision.server.phase_result import PhaseResult

_MASK = (1 << 64) - 1


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
    withheld: tuple[int, ...] = ()
    """Clients whose owners do not allow an optional statistic, or whose group cannot be read without such a
    client, rising."""
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
    content, bits = query_codec.encode_request(request), request.query.bits
    messages = [Message(content, client_registry.node(client), STATISTIC) for client in clients]
    exchange = PhaseResult(client_registry=client_registry, stage="statistic", decoder=_Decoder(bits))
    adding = _Adding(client_registry.groups, bits, optional=request.optional)
    for client, reply in exchange.send(grid, messages, timeout=timeout):
        adding.add(client, reply)
        del reply
    found = adding.finish()
    refused = [
        {"client": c, "stage": "statistic", "kind": "refused", "reason": why}
        for c, why in sorted(adding.refused.items())
    ]
    return StatisticResult(
        sums=found.sum.total.values(),
        clients=tuple(sorted(found.clients)),
        examples=found.examples,
        refused=(*exchange.refused, *refused),
        withheld=tuple(sorted(adding.withheld)),
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
            return client, query_codec.decode_reply(message.content, self._bits)
        except ValueError as error:
            raise InvalidUpdate(client, "statistic", str(error)) from error


@dataclass
class _Part:
    """What was added of replies with the same names, shapes and units."""

    sum: FixedPointSum
    clients: list[int] = field(default_factory=list)
    examples: int = 0


@dataclass
class _Group:
    """What was added of a group's masked replies: numbers that mean nothing before all are there."""

    numbers: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    clients: list[int] = field(default_factory=list)
    examples: int = 0
    masked_examples: int = 0

    def add(self, client: int, reply: StatisticReply) -> None:
        """Add a reply, modulo 2^64."""
        for name, array in reply.sums.numbers.items():
            self.numbers[name] = array + self.numbers[name] if self.clients else array
        self.clients.append(client)
        self.examples += reply.examples
        # Python's numbers do not wrap around, and NumPy's scalars warn when they do.
        self.masked_examples = (self.masked_examples + reply.masked_examples) & _MASK


class _Adding:
    """Adds up replies as they come; of none of them more is held than the sum that it is in.

    Args:
        groups: Clients of each group that masks its numbers.
        bits: Of a number.
        optional: Whether a client may withhold its sums.
    """

    def __init__(self, groups: Mapping[str, Collection[int]], bits: int, *, optional: bool = False) -> None:
        self._groups, self._bits, self._optional = groups, bits, optional
        self.withheld: set[int] = set()
        """Clients who did so, and in the end those whose group has such a client."""
        self._parts: dict[Signature, _Part] = {}
        self._masked: dict[tuple[str, Signature], _Group] = {}
        self.refused: dict[int, str] = {}
        """By client, why its reply is in no sum."""

    def add(self, client: int, reply: StatisticReply) -> None:
        """Add a reply, which is let go."""
        if reply.withheld:
            if self._optional:
                self.withheld.add(client)
            else:
                self.refused[client] = "it withholds sums that the experiment needs"
            return
        signature = reply.sums.signature
        if reply.group:
            self._masked.setdefault((reply.group, signature), _Group()).add(client, reply)
        else:
            self._add(signature, [client], reply.sums, reply.examples)

    def finish(self) -> _Part:
        """Return the sum over most clients; those with other names, shapes or units are refused."""
        for (group, signature), members in self._masked.items():
            self._add_group(group, signature, members)
        if not self._parts:
            return _Part(FixedPointSum(self._bits))
        # Of two as large ones that with the lowest client, whoever answered first.
        usual = max(self._parts.values(), key=lambda part: (len(part.clients), -min(part.clients, default=0)))
        for part in self._parts.values():
            if part is not usual:
                why = "its sums have other names or shapes than those of other clients"
                self.refused |= dict.fromkeys(part.clients, why)
        return usual

    def _add(self, signature: Signature, clients: Sequence[int], sums: FixedPoint, examples: int) -> None:
        part = self._parts.setdefault(signature, _Part(FixedPointSum(self._bits)))
        try:
            part.sum.add(sums)
        except ValueError as error:
            self.refused |= dict.fromkeys(clients, str(error))
            return
        part.clients += clients
        part.examples += examples

    def _add_group(self, group: str, signature: Signature, members: _Group) -> None:
        """Add a group's sum, in which the masks cancel, modulo 2^bits."""
        why, missing = "", set(self._groups.get(group, ())) - set(members.clients)
        if missing and missing <= self.withheld:
            self.withheld |= set(members.clients)
            return
        if set(self._groups.get(group, ())) != set(members.clients):
            why = "its sums are masked, and others of its group did not answer"
        elif members.masked_examples != members.examples & _MASK:
            why = "the masked sums of its group give no sum: somebody masked otherwise"
        if why:
            self.refused |= dict.fromkeys(members.clients, why)
            return
        numbers = {name: wrapped(array, self._bits) for name, array in members.numbers.items()}
        whole = frozenset(name for name, _, is_whole in signature if is_whole)
        self._add(signature, members.clients, FixedPoint(numbers=numbers, whole=whole), members.examples)
