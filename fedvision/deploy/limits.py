"""How much one peer may ask of the public port: requests, connections, lines in the log."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

_PEERS = 10_000
"""Peers that are remembered; beyond them the one that was silent longest is forgotten."""
_QUIET_S = 60.0
_LITTLE = 1 << 16
"""Bodies up to this size, such as heartbeats, never wait."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the public port allows; hospitals behind one address (NAT) share a peer's part."""

    requests: float = 100.0
    """Requests a second of one peer, on average; a model of 300 tensors takes 600 unless packed."""
    burst: float = 2000.0
    """Requests at once of one peer."""
    body: int = 16 * 2**20
    """Largest body in bytes; models travel in pieces of 15 MiB, Flower's own clients' in pieces of 5 MiB."""
    body_memory: int = 128 * 2**20
    """Bytes of large bodies that are in memory at a time; further ones wait to be read."""
    connections: int = 512
    """Open connections, those still shaking hands included."""
    peer_connections: int = 64
    """Open connections of one peer."""
    header_seconds: float = 10.0
    """Time for a TLS handshake, and then for a request's first line and headers."""
    header_bytes: int = 16 * 2**10
    """Largest first line and headers together."""
    idle_seconds: float = 30.0
    """Longest pause inside a body, and between two requests of one connection."""
    body_rate: float = 16e3
    """Slowest body in bytes a second, after ``header_seconds`` of grace."""


def peer_name(address: str) -> str:
    """Return what stands for a peer: an IPv4 address, or the /64 network of an IPv6 address.

    One IPv6 customer holds 2^64 addresses: they are one peer.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 4:
        return str(ip)
    if ip.ipv4_mapped:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))


class TokenBuckets:
    """A token bucket for each peer: ``burst`` tokens at most, ``rate`` new ones a second.

    Args:
        rate: Tokens a second.
        burst: Size of a bucket.
        clock: Seconds that only rise.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, peer: str) -> bool:
        """Take one token of a peer's; False when there is none left."""
        now = self._clock()
        tokens, then = self._buckets.pop(peer, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[peer] = (tokens - allowed, now)
        if len(self._buckets) > _PEERS:
            self._buckets.popitem(last=False)
        return allowed


class Room:
    """Memory for large bodies: who finds none waits, so that it does not grow with the number of clients.

    Args:
        size: Bytes in all.
    """

    def __init__(self, size: int) -> None:
        self._free, self._size = size, size
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Hold some of it; small bodies always find room, larger ones than there is take it all."""
        size = 0 if size <= _LITTLE else min(size, self._size)
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            async with self._changed:
                self._free += size
                self._changed.notify_all()


class Seats:
    """Open connections, in all and of each peer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._taken: Counter[str] = Counter()

    def take(self, peer: str) -> str | None:
        """Take a seat and return None, or the reason why there is none."""
        if self._taken.total() >= self._limits.connections:
            return f"there are {self._limits.connections} open connections already"
        if self._taken[peer] >= self._limits.peer_connections:
            return f"it has {self._limits.peer_connections} open connections already"
        self._taken[peer] += 1
        return None

    def leave(self, peer: str) -> None:
        """Give a seat back."""
        self._taken[peer] -= 1
        if not self._taken[peer]:
            del self._taken[peer]


class Journal:
    """A log of refusals that a flood cannot fill: each (peer, reason) is said at most once a minute.

    Args:
        logger: Where warnings go.
        clock: Seconds that only rise.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = monotonic) -> None:
        self._logger, self._clock = logger, clock
        self._said: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def refused(self, peer: str, reason: str, detail: str = "") -> None:
        """Say that a peer was refused, and how often since it was last said.

        Args:
            peer: Who.
            reason: Why; one of few texts.
            detail: What differs from time to time: it does not make a refusal a new one.
        """
        now = self._clock()
        then, silent = self._said.pop((peer, reason), (float("-inf"), 0))
        if now - then < _QUIET_S:
            self._said[peer, reason] = (then, silent + 1)
            return
        more = f" ({silent} times more since it was last said)" if silent else ""
        self._logger.warning("refused %s: %s%s%s", peer, reason, detail, more)
        self._said[peer, reason] = (now, 0)
        if len(self._said) > _PEERS:
            self._said.popitem(last=False)
