"""Memory of one command over time: its driver and its whole process tree, seen from outside. Linux only.

PSS, the proportional set size, counts a page that n processes share 1/n in each, so the sum over a tree is
what the tree costs; RSS counts it n times. Processes are known by a mark in their environment, which those
keep that leave their parent, as Ray's daemons do.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

MARK = "FEDVISION_TIMELINE"
Memory = tuple[int, int]
"""PSS and RSS, bytes."""


class Sample(NamedTuple):
    """The memory at one moment, bytes."""

    second: float
    driver_pss: int
    driver_rss: int
    tree_pss: int
    tree_rss: int
    processes: int


class Timeline:
    """Samples of a command while it runs.

    Args:
        every: Seconds between samples.
    """

    def __init__(self, every: float = 0.25) -> None:
        self.samples: list[Sample] = []
        self._every, self._mark = every, uuid.uuid4().hex
        self._ours: dict[tuple[str, str], bool] = {}

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None]
    ) -> None:
        """Run a command to its end.

        Args:
            command: What to run.
            environment: Its whole environment.
            on_line: Is called with each line that it prints, as it prints it.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        marked = {**environment, MARK: self._mark, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, env=marked, stdout=subprocess.PIPE, text=True)
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(process.pid, over))
        watch.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                on_line(line.rstrip("\n"))
            code = process.wait()
        finally:
            over.set()
            watch.join()
            if process.poll() is None:
                process.terminate()
                process.wait()
        if code:
            raise subprocess.CalledProcessError(code, command)

    def peak(self, since: int = 0) -> Sample:
        """Return the largest of each figure from one sample on."""
        part = self.samples[since:] or self.samples[-1:] or [Sample(0, 0, 0, 0, 0, 0)]
        return Sample(*map(max, zip(*part, strict=True)))  # type: ignore[arg-type]

    def _watch(self, driver: int, over: threading.Event) -> None:
        begun = time.perf_counter()
        while not over.wait(self._every):
            held = {number: memory(number) for number in self._members()}
            pss, rss = (sum(figures) for figures in zip(*held.values(), strict=True)) if held else (0, 0)
            second = round(time.perf_counter() - begun, 2)
            self.samples.append(Sample(second, *held.get(driver, (0, 0)), pss, rss, len(held)))

    def _members(self) -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                started = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[19]
                key = (name, started)  # numbers are given again
                if not self._ours.get(key):
                    # Read again while it is not one of ours: a fresh child has its parent's environment.
                    wanted = f"{MARK}={self._mark}".encode()
                    self._ours[key] = wanted in Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            if self._ours[key]:
                found.append(int(name))
        return found


def memory(process: int) -> Memory:
    """Return a process's memory; zeros where it is gone."""
    found = {"Pss:": 0, "Rss:": 0}
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(" ")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    except OSError:
        return 0, 0
    return found["Pss:"], found["Rss:"]
