"""The live workers of the Ray engine: started, replaced when they die, retired when memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray

from fedvision.engines.base import OnNotice
from fedvision.engines.ray.serialization import Response
from fedvision.errors import RunError

_PATIENCE = 5.0
"""Seconds for idle workers to say what memory they held."""
STARTS = 3
"""Workers in a row that may fail to start before the engine gives up on starting more."""


@dataclass(frozen=True)
class Job:
    """A call to a worker that has not answered yet."""

    reference: Any
    tasks: tuple[int, ...] = ()
    """Numbers of the messages in the call; none where only the worker's sums are requested."""
    alone: bool = False
    """Whether the task may have killed a worker before and has this one to itself."""
    closes: bool = False
    """Whether the worker's sums come with the answers."""


@dataclass(eq=False)
class PoolWorker:
    """One worker and what the driver knows of it."""

    actor: Any
    starting: Any
    """Reference to its first words; None once it is ready."""
    jobs: deque[Job] = field(default_factory=deque)
    """Calls in the order in which it works on them."""
    folded: list[int] = field(default_factory=list)
    """Tasks whose updates are in its sums and nowhere else."""
    held: tuple[int, Response] | None = None
    """An answer that waits to carry the sums."""

    @property
    def waits_for(self) -> Any:
        """The reference that it answers next; None where it has nothing to do."""
        return self.starting or (self.jobs[0].reference if self.jobs else None)


class Pool:
    """Workers that serve one run.

    Args:
        make: Starts an actor.
        size: Number of workers to keep.
        on_notice: Takes a sentence when a worker is replaced or retired.
    """

    def __init__(self, make: Callable[[], Any], size: int, on_notice: OnNotice) -> None:
        self._make, self.size, self._on_notice = make, size, on_notice
        self._failed_starts = 0
        self._notified: set[str] = set()
        self.cause = ""
        """Why the last worker died."""
        self.members: list[PoolWorker] = []
        self._fill()

    def wait(self, patience: float = 5.0) -> None:
        """Return once a worker is ready, and all of them unless that takes longer than ``patience`` seconds.

        Raises:
            RunError: None could be started.
        """
        while starting := [member.starting for member in self.members if member.starting is not None]:
            first = len(starting) == len(self.members)
            done, _ = ray.wait(starting, timeout=30 if first else patience)
            if not done and not first:
                return
            if not done:
                self._on_notice(
                    "still waiting for a worker; are the processors or GPUs that it asks for there?"
                )
            for member in [member for member in self.members if member.starting in done]:
                self.started(member)

    def started(self, member: PoolWorker) -> None:
        """Take note that a worker is ready, or start another one where it failed."""
        try:
            facts = ray.get(member.starting)
        except ray.exceptions.RayError as error:
            self._failed_starts += 1
            self.lost(member, error)
            return
        self._failed_starts = 0
        member.starting = None
        self.notify_once(facts.notices)

    def notify_once(self, notices: Iterable[str]) -> None:
        """Pass on workers' notices, each sentence once."""
        for notice in notices:
            if notice not in self._notified:
                self._notified.add(notice)
                self._on_notice(notice)

    def lost(self, member: PoolWorker, error: Exception | None = None) -> None:
        """Drop a worker that died and start another one.

        Raises:
            RunError: There is none left, and they fail at the start.
        """
        self.members.remove(member)
        ray.kill(member.actor)
        if error is not None:
            self.cause = _cause(error)
            self._on_notice(f"a worker was lost and what it had done is run again: {self.cause}")
        if self._failed_starts < STARTS:
            self._fill()
        elif not self.members:
            raise RunError(f"no worker could be started: {self.cause}")

    def shrink(self) -> bool:
        """Keep half as many workers from now on; false where there is only one.

        Idle workers go first; a busy one is spared, and so there may be too many until it is lost.
        """
        if self.size <= 1:
            return False
        self.size = (self.size + 1) // 2
        self._on_notice(f"out of memory: going on with {self.size} worker{'s' * (self.size > 1)}")
        return True

    def surplus(self) -> list[PoolWorker]:
        """Return the members that are too many."""
        return self.members[self.size :]

    def peak_memory(self) -> list[dict[str, int]]:
        """Return what each worker that answers has held of memory at most."""
        asked = [member.actor.peak_memory.remote() for member in self.members if member.starting is None]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=_PATIENCE) if asked else ([], [])
        found = []
        for reference in done:
            with suppress(ray.exceptions.RayError):  # it died meanwhile
                found.append(ray.get(reference))
        return found

    def close(self) -> None:
        """Stop all workers."""
        for member in self.members:
            ray.kill(member.actor)
        self.members = []

    def _fill(self) -> None:
        while len(self.members) < self.size:
            actor = self._make()
            self.members.append(PoolWorker(actor=actor, starting=actor.ready.remote()))


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether Ray stopped a worker because its machine ran low on memory."""
    return isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error)


def _cause(error: Exception) -> str:
    """Return the informative line of one of Ray's long messages."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return str(error.cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for line in lines if "exit detail" in line or line.startswith(("fedvision.", "Worker exit"))]
    return (own or lines or [type(error).__name__])[-1]
