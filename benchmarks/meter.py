"""Measure a command with its whole process tree: time, memory, processor, and what else the machine did.

Memory is the proportional set size (PSS): a page that n processes share counts 1/n in each, so the sum over
the tree is what the tree costs. Processes are known by a mark in their environment, which daemons keep that
leave their parent, as Ray's do. Linux only.

The system walks through all pages of a process to read its PSS: 10 to 15 ms for one that has imported torch.
Read four times a second that took 7 % of the time of two busy cores, and nothing from a rival that leaves one
idle. So it is read where the tree's resident memory, which costs nothing to read, has grown; and now and
then in case fewer processes share a page.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = "FEDVISION_BENCHMARK"
EVERY = 0.5
"""Seconds between two looks at the tree."""
GROWTH, PATIENCE = 1.02, 5.0
"""Growth of the resident memory since the PSS was read, or seconds since, that cause another reading."""
STRANGE = 2
"""Looks without the mark after which a process is none of the tree."""
RESULT = "RESULT "
_TICKS = os.sysconf("SC_CLK_TCK")


class CommandFailed(Exception):
    """A command ended with an error or without a result."""


def measure(command: Sequence[str], environment: Mapping[str, str], timeout: float = 3600) -> dict[str, Any]:
    """Run a command to its end and return its own result with what was measured from outside.

    Args:
        command: Prints one line ``RESULT {json}``.
        environment: The whole environment of the command.
        timeout: Seconds after which it is killed.

    Returns:
        The command's result, and ``process_s``, ``pss_mb`` (peak over the tree), ``cpu_s`` (of the tree),
        ``others`` (share of all cores that processes outside the tree used meanwhile).

    Raises:
        CommandFailed: It failed, took too long or printed no result; the message ends with its last lines.
    """
    mark = uuid.uuid4().hex
    tree, busy, own, children = Tree(mark), machine_seconds(), time.process_time(), children_seconds()
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, env={**environment, MARK: mark}, stdout=output, stderr=subprocess.STDOUT
        )
        watch = threading.Thread(target=tree.watch, args=(process.pid,))
        watch.start()
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            elapsed = time.perf_counter() - begun
            tree.over.set()
            watch.join()
            tree.end()
            process.wait()
        output.seek(0)
        text = output.read()
    # What the system counted for the children is exact; daemons that left them are in the samples alone.
    worked = max(tree.cpu_seconds(), children_seconds() - children)
    used = machine_seconds() - busy - worked - (time.process_time() - own)
    return {
        **_result(command, code, text),
        "process_s": elapsed,
        "pss_mb": tree.peak / 2**20,
        "cpu_s": worked,
        "others": max(0.0, used) / elapsed / (os.cpu_count() or 1),
    }


def _result(command: Sequence[str], code: int | None, text: str) -> dict[str, Any]:
    lines = [line for line in text.splitlines() if RESULT in line]
    if code != 0 or not lines:
        how = "took too long" if code is None else f"ended with code {code}" if code else "printed no result"
        last = "\n".join(text.splitlines()[-15:])
        raise CommandFailed(f"{' '.join(command[:3])} {how}:\n{last}")
    result: dict[str, Any] = json.loads(lines[-1].partition(RESULT)[2])
    return result


class Tree:
    """All processes that carry a mark in their environment."""

    def __init__(self, mark: str) -> None:
        self.peak = 0
        self.over = threading.Event()
        self._mark = f"{MARK}={mark}".encode()
        self._looks: dict[tuple[int, str], int] = {}
        """How often a process was looked at without the mark, -1 for one that has it."""
        self._cpu: dict[tuple[int, str], float] = {}
        self._resident, self._read = 0, -math.inf

    def watch(self, first: int) -> None:
        """Look at the processes now and then until it is over."""
        while not self.over.wait(EVERY):
            self.look()

    def look(self) -> None:
        """Note the processor time of the tree's processes, and their PSS where it may be a new peak."""
        members = self._members()
        self._cpu |= members
        resident = sum(resident_memory(process) for (process, _), _ in members)
        if resident > GROWTH * self._resident or time.monotonic() > self._read + PATIENCE:
            self._resident, self._read = max(resident, self._resident), time.monotonic()
            self.peak = max(self.peak, sum(proportional_memory(process) for (process, _), _ in members))

    def cpu_seconds(self) -> float:
        """Return the processor time of all processes that were ever seen, as seen last."""
        return sum(self._cpu.values())

    def end(self) -> None:
        """Note the last times and end what outlived its parent, of this tree alone."""
        for process, seconds in self._members():
            self._cpu[process] = seconds
            try:
                os.kill(process[0], 9)
            except ProcessLookupError:
                continue

    def _members(self) -> list[tuple[tuple[int, str], float]]:
        """Return (process, processor seconds) of each live process of the tree."""
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                process = (int(name), fields[19])  # with its start time: numbers are given again
                looks = self._looks.get(process, 0)
                if 0 <= looks < STRANGE:
                    # Read again: a fresh child has its parent's environment.
                    marked = self._mark in Path(f"/proc/{name}/environ").read_bytes()
                    self._looks[process] = -1 if marked else looks + 1
            except OSError:
                continue
            if self._looks[process] == -1:
                found.append((process, (int(fields[11]) + int(fields[12])) / _TICKS))
        return found


def resident_memory(process: int) -> int:
    """Return a process's resident memory in bytes; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def proportional_memory(process: int) -> int:
    """Return a process's PSS in bytes; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def children_seconds() -> float:
    """Return the processor seconds of this process's ended children and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine_seconds() -> float:
    """Return the seconds that all cores together have worked since the machine started."""
    user, nice, system, _, _, irq, soft, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + soft + steal) / _TICKS
