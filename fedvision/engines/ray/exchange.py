"""One exchange of messages over the pool: batches out, answers in, whoever dies on the way.

A worker has two batches at a time, so that it never waits for the driver. What it trained lies in its sums
until they are requested, with the batch that empties the queue or behind its last one; should it die
before, its clients are run again by others. Sums are requested again where a worker trains more after that.
A task that was at work when a worker died runs alone from then on, and is given up after its second death
there: so one client that kills its process costs two workers and not the round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import ray
from flwr.app import Message

from fedvision.engines.ray.serialization import Content, Failure, RequestEncoder, Response, reply, unpack
from fedvision.engines.ray.task_queue import TaskQueue
from fedvision.engines.ray.worker_pool import Job, Pool, PoolWorker, ran_out_of_memory
from fedvision.errors import RunError
from fedvision.flower import internals

AHEAD = 2
"""Batches that a worker has at a time."""
DEATHS = 2
"""Workers that a task may take with it, alone, before it is given up."""


class RayExchange:
    """The state of one exchange.

    Args:
        pool: The workers.
        number: Number of the exchange, so that workers distinguish it from the next.
        messages: What goes out, one for each node.
        costs: How much work each message is, in any unit.
        most: Messages in a batch at most.
        pre_aggregates: Whether workers keep their answers' tensors in sums.
    """

    def __init__(
        self,
        pool: Pool,
        number: int,
        messages: Sequence[Message],
        costs: Sequence[float],
        *,
        most: int,
        pre_aggregates: bool,
    ) -> None:
        self._pool, self._number, self._messages, self._folds = pool, number, messages, pre_aggregates
        self._queue = TaskQueue(costs, most)
        self._outbox = RequestEncoder()
        self._deaths: Counter[int] = Counter()
        self._delivered: set[int] = set()

    def run(self) -> Iterator[Message]:
        """Yield a reply for each message, and a second one, an error, where a client fails when run again.

        Raises:
            RunError: No worker can be kept alive.
        """
        try:
            while self._unfinished():
                self._feed()
                yield from self._collect()
        except BaseException:
            for member in [member for member in self._pool.members if member.jobs or member.folded]:
                self._pool.lost(member)
            raise

    def _unfinished(self) -> bool:
        return bool(self._queue) or any(member.jobs or member.folded for member in self._pool.members)

    def _feed(self) -> None:
        ready = [member for member in self._pool.members if member.starting is None]
        for member in [member for member in self._pool.surplus() if not member.jobs and not member.folded]:
            self._pool.lost(member)
            ready = [other for other in ready if other is not member]
        for _ in range(AHEAD):
            for member in ready:
                self._feed_one(member, len(ready))

    def _feed_one(self, member: PoolWorker, workers: int) -> None:
        if len(member.jobs) >= AHEAD or any(job.alone or job.closes for job in member.jobs):
            return
        if member not in self._pool.surplus():
            if tasks := self._queue.take(workers):
                self._send(member, tasks, closes=self._folds and not self._queue)
                return
            if not member.jobs and not member.folded and (task := self._queue.take_alone()) is not None:
                self._send(member, [task], alone=True)
                return
        if member.folded or (self._folds and member.jobs):
            # Nothing is left to hand out: its sums can follow its last batch without a word from here.
            self._send(member, [], closes=True)

    def _send(
        self, member: PoolWorker, tasks: list[int], *, alone: bool = False, closes: bool = False
    ) -> None:
        orders = [self._outbox.order(self._messages[task]) for task in tasks]
        reference = member.actor.work.remote(self._number, orders, closes)
        member.jobs.append(Job(reference, tuple(tasks), alone, closes))

    def _collect(self) -> Iterator[Message]:
        waiting = {member.waits_for: member for member in self._pool.members if member.waits_for is not None}
        if not waiting:
            raise RunError(f"no worker is left: {self._pool.cause}")
        done, _ = ray.wait(list(waiting), num_returns=1)
        for reference in done:
            member = waiting[reference]
            if member.starting is not None:
                self._pool.started(member)
            else:
                yield from self._finish(member)

    def _finish(self, member: PoolWorker) -> Iterator[Message]:
        job = member.jobs[0]
        try:
            answers, sums, notices = ray.get(job.reference)
        except ray.exceptions.RayTaskError as error:
            # The worker itself is at fault, not a client: run again what it had, elsewhere.
            yield from self._bury(member, error)
            return
        except ray.exceptions.RayError as error:
            yield from self._bury(member, error)
            return
        member.jobs.popleft()
        self._pool.notify_once(notices)
        for task, answer in zip(job.tasks, answers, strict=True):
            yield from self._take(member, task, answer)
        if sums is not None:
            yield from self._take_sums(member, sums)

    def _take(self, member: PoolWorker, task: int, answer: Response) -> Iterator[Message]:
        if isinstance(answer, Failure) and answer.out_of_memory and self._pool.shrink():
            self._queue.put_back([task])
            return
        if isinstance(answer, Failure) or not self._folds:
            yield from self._deliver(task, answer)
            return
        member.folded.append(task)
        if member.held is None:
            member.held = (task, answer)
        else:
            yield from self._deliver(task, answer)

    def _take_sums(self, member: PoolWorker, sums: Content) -> Iterator[Message]:
        assert member.held is not None, "a worker with sums has an answer to carry them"
        task, answer = member.held
        member.folded, member.held = [], None
        message = reply(answer, self._messages[task])
        for key, record in unpack(sums, partial(_fetch, member.actor)).items():
            message.content[key] = record
        self._delivered.add(task)
        yield message

    def _deliver(self, task: int, answer: Response) -> Iterator[Message]:
        """Yield an answer, but no second one for a task that succeeded."""
        if task not in self._delivered or isinstance(answer, Failure):
            self._delivered.add(task)
            yield reply(answer, self._messages[task])

    def _bury(self, member: PoolWorker, error: Exception) -> Iterator[Message]:
        """Replace a worker that died and run again what it had done and was doing."""
        suspects = member.jobs[0].tasks
        others = [task for job in list(member.jobs)[1:] for task in job.tasks] + member.folded
        member.jobs.clear()
        if ran_out_of_memory(error):
            self._pool.shrink()
        self._pool.lost(member, error)
        self._queue.put_back(others)
        for task in suspects:
            if len(suspects) == 1:
                self._deaths[task] += 1
            if self._deaths[task] < DEATHS:
                self._queue.put_back([task], alone=True)
                continue
            reason = f"its process died {DEATHS} times: {self._pool.cause}"
            yield from self._deliver(task, Failure(internals.CLIENT_RAISED, reason))


def _fetch(actor: Any, place: int, key: str, name: str, start: int, stop: int, piece: int) -> list[Any]:
    """Request a slice of an array that stayed on a worker; return a reference to each piece."""
    count = -(-(stop - start) // piece)
    pieces = actor.part.options(num_returns=count).remote(place, key, name, start, stop, piece)
    return list(pieces) if count > 1 else [pieces]
