"""Limits of one peer on the public port: requests, connections, memory, lines in the log."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

_PEERS = 10_000
"""Peers that are remembered; beyond them the one that was silent longest is forgotten."""
LITTLE = 1 << 16
"""Bodies up to this size, such as heartbeats, never wait."""
_LONG_WAIT_S = 10.0
"""Seconds of waiting for room after which the log names who waits."""


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
    objects: int = 4096
    """Objects of a reply; those of models have 15 MiB, so that 60 GB come with one."""
    key_bodies: int = 2
    """Large bodies of one client that are in memory at a time."""
    busy_rate: float = 100e3
    """Slowest large body in bytes a second while others wait for room, after ``header_seconds`` of grace."""


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
    """A token bucket for each peer: ``burst`` tokens at most, ``rate`` new ones a second."""

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


@dataclass(eq=False)
class Held:
    """Room that a body holds, or waits for."""

    key: bytes
    size: int
    ready: asyncio.Future[None] | None = None
    """Of one that waits."""


class MemoryBudget:
    """Memory for large bodies: who finds none waits in line, so that it does not grow with the clients.

    A client that waits for its own bodies alone does not hold up those behind it.

    Args:
        size: Bytes in all.
        each: Bodies of one key at a time.
        late: Called with who waits, and who holds how many bodies, when somebody has waited for 10 s.
    """

    def __init__(
        self,
        size: int,
        each: int = 2,
        late: Callable[[bytes, Counter[bytes]], None] = lambda key, holders: None,
    ) -> None:
        self._free, self._size, self._each, self._late = size, size, each, late
        self._holders: Counter[bytes] = Counter()
        self._line: list[Held] = []

    @asynccontextmanager
    async def take(self, key: bytes, size: int) -> AsyncIterator[Held]:
        """Hold some of it for a body of a key's; small ones always find room, huge ones take it all."""
        held = Held(key, 0 if size <= LITTLE else min(size, self._size))
        if held.size:
            await self._enter(held)
        try:
            yield held
        finally:
            self.shrink(held, 0)

    def wanted(self, held: Held) -> bool:
        """Return whether another body waits for what this one holds."""
        return bool(held.size) and any(
            waiting.key == held.key or self._holders[waiting.key] < self._each for waiting in self._line
        )

    def shrink(self, held: Held, size: int) -> None:
        """Give back what a body turned out not to need: all of it where it is small."""
        size = 0 if size <= LITTLE else size
        if size >= held.size:
            return
        self._free += held.size - size
        held.size = size
        if not size:
            self._holders[held.key] -= 1
            self._holders += Counter()
        self._admit()

    async def _enter(self, held: Held) -> None:
        held.ready = asyncio.get_running_loop().create_future()
        self._line.append(held)
        self._admit()
        if held.ready.done():
            return
        try:
            if not (await asyncio.wait({held.ready}, timeout=_LONG_WAIT_S))[0]:
                self._late(held.key, self._holders.copy())
            await held.ready
        except asyncio.CancelledError:
            if held in self._line:
                self._line.remove(held)
            else:
                self.shrink(held, 0)
            self._admit()
            raise

    def _admit(self) -> None:
        """Let those in whose turn it is; who needs more than there is keeps its place."""
        for held in list(self._line):
            if self._holders[held.key] >= self._each:
                continue
            if held.size > self._free:
                return
            self._line.remove(held)
            self._free -= held.size
            self._holders[held.key] += 1
            if held.ready and not held.ready.done():
                held.ready.set_result(None)


class ConnectionLimiter:
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
