"""Token buckets, seats and the journal, with a clock that the test turns."""

from __future__ import annotations

import asyncio

import pytest

from fedvision.deployment.server import limits
from fedvision.deployment.server.limits import (
    ConnectionLimiter,
    Limits,
    MemoryBudget,
    TokenBuckets,
    peer_name,
)


class Clock:
    """Seconds that rise when set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    buckets = TokenBuckets(rate=2, burst=3, clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    clock.now += 1
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    clock.now += 0.5
    assert buckets.take("a")
    # It never holds more than the burst.
    clock.now += 1000
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]


def test_one_peers_flood_takes_nothing_from_another() -> None:
    buckets = TokenBuckets(rate=1, burst=1, clock=Clock())
    assert buckets.take("a")
    assert not buckets.take("a")
    assert buckets.take("b")


def test_memory_of_peers_is_bounded_and_forgets_the_most_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_PEERS", 2)
    buckets = TokenBuckets(rate=1, burst=1, clock=Clock())
    for peer in "aab":
        buckets.take(peer)
    assert not buckets.take("a")
    assert buckets.take("c")  # forgets b
    assert not buckets.take("a")
    assert buckets.take("b")


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_peer_is_an_address_or_a_network_of_one_customer(address: str, peer: str) -> None:
    assert peer_name(address) == peer


def test_seats_are_counted_in_all_and_for_each_peer() -> None:
    seats = ConnectionLimiter(Limits(connections=3, peer_connections=2))
    assert [seats.take("a"), seats.take("a")] == [None, None]
    assert seats.take("a") == "it has 2 open connections already"
    assert seats.take("b") is None
    assert seats.take("c") == "there are 3 open connections already"
    seats.leave("a")
    assert seats.take("c") is None


def test_large_bodies_wait_for_room_and_small_ones_do_not() -> None:
    async def scene() -> None:
        room, order = MemoryBudget(100 << 10, each=9), []

        async def hold(name: str, size: int, until: asyncio.Event) -> None:
            async with room.take(name.encode(), size):
                order.append(name)
                await until.wait()

        first, rest = asyncio.Event(), asyncio.Event()
        rest.set()
        held = asyncio.create_task(hold("first", 70 << 10, first))
        await asyncio.sleep(0)
        others = [
            asyncio.create_task(hold("large", 70 << 10, rest)),
            asyncio.create_task(hold("huge", 1 << 30, rest)),
            asyncio.create_task(hold("small", 64 << 10, rest)),
        ]
        await asyncio.sleep(0.05)
        assert order == ["first", "small"]
        first.set()
        await asyncio.gather(held, *others)
        assert sorted(order) == ["first", "huge", "large", "small"], "more than there is takes it all"

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_room_is_given_back_when_a_request_fails() -> None:
    async def scene() -> None:
        room = MemoryBudget(100 << 10)
        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                async with room.take(b"a", 100 << 10):
                    raise ValueError("broken")

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_a_client_holds_two_pieces_and_holds_up_nobody_but_itself() -> None:
    async def scene() -> None:
        room, order, until = MemoryBudget(500 << 10), [], asyncio.Event()

        async def hold(key: str) -> None:
            async with room.take(key.encode(), 100 << 10) as held:
                order.append((key, room.wanted(held)))
                await until.wait()

        tasks = [asyncio.create_task(hold(key)) for key in "aaaabbcc"]
        await asyncio.sleep(0.01)
        assert [key for key, _ in order] == ["a", "a", "b", "b", "c"]
        until.set()
        await asyncio.gather(*tasks)
        assert sorted(key for key, _ in order) == list("aaaabbcc")

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_who_gives_up_waiting_takes_no_room() -> None:
    async def scene() -> None:
        room = MemoryBudget(100 << 10)

        async def hold() -> None:
            async with room.take(b"b", 100 << 10):
                pass

        async with room.take(b"a", 100 << 10) as held:
            waiting = asyncio.create_task(hold())
            await asyncio.sleep(0)
            assert room.wanted(held)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert not room.wanted(held)
            room.shrink(held, 10)  # it was a small one
            await asyncio.wait_for(hold(), 1)
        await asyncio.wait_for(hold(), 1)

    asyncio.run(asyncio.wait_for(scene(), 10))
