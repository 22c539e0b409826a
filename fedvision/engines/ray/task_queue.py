"""Who works on what next: the longest tasks first, in shares that shrink as the work runs out.

Guided self-scheduling (Polychronopoulos and Kuck 1987): a worker that is free gets a fixed share of what is
left, so that early requests are few and large, and the last ones are small and even out the finish. A request
costs the worker that waits and the driver that answers a few milliseconds, so the last ones are not single
tasks either.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

SHARES = 2.0
"""A batch is one part in ``SHARES`` of a worker's even share of the work that is left,"""
LEAST = 0.15
"""but not less than this part of its even share of all work."""


class TaskQueue:
    """Tasks by number, to be taken in batches.

    Args:
        costs: How much work each task is, > 0, in any unit.
        most: Tasks in a batch at most.
    """

    def __init__(self, costs: Sequence[float], most: int) -> None:
        self._cost: Callable[[int], float] = costs.__getitem__
        self._most = most
        # Ascending, so that the longest is taken from the end.
        self._waiting = sorted(range(len(costs)), key=lambda task: (self._cost(task), -task))
        self._left = self._all = float(sum(costs))
        self._alone: list[int] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._alone)

    def take(self, workers: int) -> list[int]:
        """Return the next batch for one of so many workers; empty where nothing is left for one."""
        share = max(self._left / SHARES, self._all * LEAST) / max(1, workers)
        batch: list[int] = []
        taken = 0.0
        # The longest, and after it whatever still fits.
        for place in range(len(self._waiting) - 1, -1, -1):
            cost = self._cost(self._waiting[place])
            if not batch or taken + cost <= share:
                batch.append(self._waiting.pop(place))
                taken += cost
            if len(batch) == self._most:
                break
        self._left -= taken
        return batch

    def take_alone(self) -> int | None:
        """Return a task that must have a worker to itself; None where there is none."""
        return self._alone.pop() if self._alone else None

    def put_back(self, tasks: Sequence[int], *, alone: bool = False) -> None:
        """Return tasks that were not done; those that may have killed their worker are to run alone."""
        if alone:
            self._alone.extend(tasks)
            return
        for task in tasks:
            bisect.insort(self._waiting, task, key=lambda other: (self._cost(other), -other))
            self._left += self._cost(task)
