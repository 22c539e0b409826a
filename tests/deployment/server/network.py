"""Machines with an address each, and a network between them that delays, loses, throttles and cuts.

Every machine is a network namespace of its own (man 7 network_namespaces) with one interface, a TUN device
(Linux, Documentation/networking/tuntap.rst). What a machine sends is read here, treated as the line is to
treat it, and written to the machine it is for. So TCP meets real delay, loss and silence, and neither
iproute2 nor a kernel with netem is needed: many kernels lack it ("Specified qdisc kind is unknown").

A namespace has no name and no owner but this process and those that run in it: when they end, however they
end, it is gone with its interface.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import selectors
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000
_SET_FLAGS, _SET_ADDRESS, _SET_MASK = 0x8914, 0x8916, 0x891C
_UP = 0x1
_DEVICE = b"wire"
_QUEUE_S = 0.4
"""A throttled line drops what would wait longer, as routers do; TCP slows down by that."""


def missing() -> str:
    """Return why machines cannot be made here, or nothing where they can."""
    try:
        _in_thread(lambda: (_call("unshare", _CLONE_NEWNET), os.close(_open_device())))
    except OSError as error:
        return f"no network namespaces with a TUN device here ({error}); run as root, with /dev/net/tun"
    return ""


@dataclass
class Line:
    """How a machine is joined to the others; may be changed at any time, and holds in both directions."""

    delay: float = 0.0
    """Seconds that a packet takes, half of them out and half in: what a round trip takes longer."""
    loss: float = 0.0
    """Share of packets that are lost."""
    rate: float = 0.0
    """Bits a second; 0 sets no limit."""
    cut: bool = False
    """Nothing passes, without an error."""

    def __post_init__(self) -> None:
        self._free = {"out": 0.0, "in": 0.0}

    def passes(self, way: str, size: int, now: float, luck: float) -> float | None:
        """Return when a packet of some bytes that came at ``now`` is through, or None where it is lost."""
        if self.cut or luck < self.loss:
            return None
        if self.rate:
            begin = max(now, self._free[way])
            if begin - now > _QUEUE_S:
                return None
            now = self._free[way] = begin + 8 * size / self.rate
        return now + self.delay / 2


class Machine:
    """A network namespace with an address.

    Args:
        address: IPv4, as the others reach it.
    """

    def __init__(self, address: str) -> None:
        self.address, self.line = address, Line()
        self.namespace, self.device = _in_thread(_new_namespace)
        self.within(lambda: _configure(address))

    def within(self, work: Callable[[], _T]) -> _T:
        """Do something, such as opening a socket, as a process of this machine would."""

        def there() -> _T:
            _call("setns", self.namespace, _CLONE_NEWNET)
            return work()

        return _in_thread(there)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program on this machine; options are ``subprocess.Popen``'s."""
        enter = ["nsenter", f"--net=/proc/self/fd/{self.namespace}", "--"]
        process = subprocess.Popen([*enter, *command], pass_fds=(self.namespace,), **options)
        while process.poll() is None and process.pid not in self.processes():
            time.sleep(0.005)
        return process

    def unplug(self) -> None:
        """Take the interface down: programs on this machine see it at once."""
        self.within(lambda: _set_flags(_DEVICE, 0))

    def plug(self) -> None:
        """Bring the interface up again."""
        self.within(lambda: _set_flags(_DEVICE, _UP))

    def processes(self) -> list[int]:
        """Return the numbers of all processes that run on this machine."""
        mine, found = os.fstat(self.namespace).st_ino, []
        for path in Path("/proc").glob("[0-9]*/ns/net"):
            with suppress(OSError):
                if path.stat().st_ino == mine and int(path.parts[2]) != os.getpid():
                    found.append(int(path.parts[2]))
        return found

    def power_off(self) -> None:
        """Kill all processes at once."""
        while numbers := self.processes():
            for number in numbers:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.01)

    def close(self) -> None:
        """Leave the namespace to its processes; without any it ends."""
        os.close(self.device)
        os.close(self.namespace)


class Network:
    """Machines and the lines between them.

    Args:
        machines: By name; packets pass between them by address.
        seed: Of the losses.
    """

    def __init__(self, machines: Mapping[str, Machine], seed: int = 0) -> None:
        self.machines = machines
        self._by_address = {socket.inet_aton(one.address): one for one in machines.values()}
        self._luck = random.Random(seed)
        self._under_way: list[tuple[float, int, Machine, bytes]] = []
        self._count = 0
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def _carry(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._wake, selectors.EVENT_READ)
            for machine in self.machines.values():
                ready.register(machine.device, selectors.EVENT_READ, machine)
            while True:
                due = self._under_way[0][0] - time.monotonic() if self._under_way else None
                for key, _ in ready.select(None if due is None else max(0.0, due)):
                    if key.data is None:
                        return
                    for packet in _read(key.data.device):
                        self._send(key.data, packet)
                self._deliver()

    def _send(self, source: Machine, packet: bytes) -> None:
        target = self._by_address.get(packet[16:20]) if packet[0] >> 4 == 4 else None
        if target is None:
            return
        now = time.monotonic()
        for way, line in (("out", source.line), ("in", target.line)):
            through = line.passes(way, len(packet), now, self._luck.random())
            if through is None:
                return
            now = through
        self._count += 1
        heapq.heappush(self._under_way, (now, self._count, target, packet))

    def _deliver(self) -> None:
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(self._under_way)
            with suppress(OSError):  # its interface is down
                os.write(target.device, packet)

    def close(self) -> None:
        """End all processes and all machines."""
        os.write(self._stop, b".")
        self._thread.join()
        for machine in self.machines.values():
            machine.power_off()
            machine.close()
        os.close(self._wake)
        os.close(self._stop)


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """Make machines 10.77.0.1, 10.77.0.2, ... that end with the block."""
    made = Network({name: Machine(f"10.77.0.{number}") for number, name in enumerate(names, 1)})
    try:
        yield made
    finally:
        made.close()


def _in_thread(work: Callable[[], _T]) -> _T:
    """Do something in a thread of its own: which namespace a thread is in holds for it alone."""
    done: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _call(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _new_namespace() -> tuple[int, int]:
    _call("unshare", _CLONE_NEWNET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY), _open_device()


def _open_device() -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", _DEVICE, _TUN | _NO_HEADER))
    except OSError:
        os.close(device)
        raise
    return device


def _configure(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((_SET_ADDRESS, address), (_SET_MASK, "255.255.255.0")):
            place = struct.pack("16sHH4s8x", _DEVICE, socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, place)
    for device in (_DEVICE, b"lo"):
        _set_flags(device, _UP)


def _set_flags(device: bytes, flags: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH14x", device, flags))


def _read(device: int) -> Iterator[bytes]:
    with suppress(BlockingIOError):
        while True:
            yield os.read(device, 65536)
