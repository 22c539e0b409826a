"""The network of the other tests does what they rely on: measured from inside, over TCP."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.deployment.server.network import Line, Network, network


@pytest.fixture
def two(spaces: None) -> Iterator[Network]:
    with network("here", "there") as made:
        yield made


def _connected(two: Network) -> tuple[socket.socket, socket.socket, float]:
    """Return both ends of a connection and the seconds that it took."""
    there = two["there"].within(lambda: socket.create_server((two["there"].address, 7000)))
    here = two["here"].within(lambda: socket.socket(socket.AF_INET))
    here.settimeout(20)
    with there:
        began = time.monotonic()
        here.connect((two["there"].address, 7000))
        took = time.monotonic() - began
        other, _ = there.accept()
    return here, other, took


def _quickest(two: Network) -> float:
    """Return how many seconds the fastest of three connections takes: a busy machine adds to some of them."""
    taken = []
    for _ in range(3):
        here, other, took = _connected(two)
        with here, other:
            taken.append(took)
    return min(taken)


def _flow(source: socket.socket, target: socket.socket, size: int) -> float:
    """Return how many seconds some bytes take."""
    began = time.monotonic()
    sender = threading.Thread(target=source.sendall, args=(bytes(size),))
    sender.start()
    left = size
    while left:
        left -= len(target.recv(min(left, 1 << 16)))
    sender.join()
    return time.monotonic() - began


def test_a_connection_takes_the_lines_delay(two: Network) -> None:
    two["here"].line = Line(delay=0.2)
    assert 0.2 <= _quickest(two) < 0.35


@pytest.mark.slow
def test_a_throttled_line_carries_so_many_bits_a_second_in_both_directions(two: Network) -> None:
    assert _quickest(two) < 0.1
    here, other, _ = _connected(two)
    with here, other:
        fast = _flow(here, other, 500_000)
        two["there"].line = Line(rate=5e6)
        for source, target in ((here, other), (other, here)):
            slow = _flow(source, target, 500_000)
            assert slow > 0.75, "0.8 s, and a little less for what is still in the queue"
            assert fast < slow


def test_a_cut_line_is_silent_and_nothing_is_lost_when_it_is_mended(two: Network) -> None:
    here, other, _ = _connected(two)
    with here, other:
        two["there"].line.cut = True
        here.sendall(b"kept")
        other.settimeout(0.5)
        with pytest.raises(TimeoutError):
            other.recv(4)
        two["there"].line.cut = False
        other.settimeout(10)
        assert other.recv(4) == b"kept"


def test_an_unplugged_machine_is_noticed_and_comes_back(two: Network) -> None:
    two["here"].unplug()
    sender = two["here"].within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sender, pytest.raises(OSError, match="unreachable"):
        sender.sendto(b"x", (two["there"].address, 7000))
    two["here"].plug()
    here, other, _ = _connected(two)
    here.close()
    other.close()


def test_the_share_of_lost_packets_is_the_lines(two: Network) -> None:
    two["here"].line = Line(loss=0.25)
    receiver = two["there"].within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.bind((two["there"].address, 7001))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    receiver.settimeout(0.5)
    with receiver, two["here"].within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        for _ in range(400):
            sender.sendto(b"x", (two["there"].address, 7001))
            time.sleep(0.0005)
        arrived = 0
        while _arrives(receiver):
            arrived += 1
    assert 240 <= arrived <= 360, "300 of 400, give or take seven deviations"


def _arrives(receiver: socket.socket) -> bool:
    try:
        receiver.recv(1)
    except TimeoutError:
        return False
    return True


def test_a_machine_without_power_has_no_process_left(two: Network) -> None:
    sleeper = two["here"].start(["sleep", "100"])
    other = two["there"].start(["sleep", "100"])
    assert two["here"].processes() == [sleeper.pid]
    two["here"].power_off()
    assert sleeper.wait(30) == -9
    assert other.poll() is None
    assert two["there"].processes() == [other.pid]
    other.kill()
    other.wait()


def test_machines_leave_nothing_behind(two: Network) -> None:
    assert os.path.exists(f"/proc/self/fd/{two['here'].namespace}")
    with network("one") as gone:
        process = gone["one"].start(["sleep", "100"])
        number = gone["one"].namespace
    assert process.wait(30) == -9
    assert not os.path.exists(f"/proc/self/fd/{number}")
