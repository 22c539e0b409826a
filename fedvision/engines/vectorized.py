"""The vectorized engine: one process trains a cohort in stacks of K clients, each stack in one go.

A GPU is kept busy by K small models where one of them would wait for kernel launches. Everything but training
is answered message by message, and so is what cannot be stacked. On a CPU the serial engine is faster unless
the network is tiny: one client keeps a core busy already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedvision.engines.base import OnNotice
from fedvision.engines.batched_client_app import BatchedClientApp
from fedvision.engines.client_host import ClientHostFactory
from fedvision.engines.dispatcher import MessageDispatcher
from fedvision.engines.local_grid import LocalGrid
from fedvision.engines.stack_size import StackSizeTuner
from fedvision.flower import internals
from fedvision.flower.client_registry import FIRST_NODE
from fedvision.types import TrainRequest


class VectorizedEngine:
    """Carries messages to clients in this process and trains several of them at once.

    Args:
        stack: K, the clients that are trained at once; 0 takes a fixed number on a CPU, and on a GPU as many
            as fit into its memory, measured on the first few.
        record: Whether steps are recorded and played back where the device can.

    Raises:
        ValueError: ``stack`` is negative.
    """

    def __init__(self, *, stack: int = 0, record: bool = True) -> None:
        if stack < 0:
            raise ValueError(f"stack must be >= 0, not {stack}; 0 takes as many clients as fit")
        self._stack, self._record = stack, record

    @contextmanager
    def open(
        self, host_factory: ClientHostFactory, *, run_id: int = 1, on_notice: OnNotice = print
    ) -> Iterator[Grid]:
        """Open a Grid over the recipe's clients; one at a time in a process."""
        internals.identify(run_id)
        yield VectorizedGrid(host_factory, run_id, self._stack, on_notice, record=self._record)


class VectorizedGrid(LocalGrid):
    """A Grid over one host; a stack of clients trains when the reply of its first is read.

    Args:
        host_factory: Makes the host.
        run_id: Flower's number of the run.
        stack: Clients that are trained at once; 0 by measurement.
        on_notice: Called with why clients are trained one by one, each reason once.
        record: Whether steps are recorded where the device can.
    """

    def __init__(
        self,
        host_factory: ClientHostFactory,
        run_id: int,
        stack: int,
        on_notice: OnNotice,
        *,
        record: bool = True,
    ) -> None:
        super().__init__(host_factory.clients, run_id)
        self.aggregator = host_factory.aggregator()
        """Sums updates where they were trained; None where the strategy must see every one."""
        self.pre_aggregates = self.aggregator is not None
        """Whether training messages are answered with sums."""
        self.keeps_sums = False
        """Whether sums stay in ``aggregator``, instead of being part of the last reply."""
        host = host_factory.open()
        team = (
            None if host.trainer is None else BatchedClientApp(host.trainer, self.aggregator, record=record)
        )
        desk = MessageDispatcher(host, host_factory.clients, run_id)
        self._desk = BatchingDispatcher(desk, team, stack, host_factory.cost, on_notice)

    def carry(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Answer training messages in stacks, the longest clients first, then the others in order."""
        replies = self._desk.deliver_all(messages)
        if self.aggregator is None or self.keeps_sums:
            return replies
        return self.aggregator.with_sums(replies)


class BatchingDispatcher:
    """Gives training messages to a host several at a time.

    Args:
        desk: Answers messages one by one.
        team: Answers several messages at once; None where nobody does.
        stack: Clients that are trained at once; 0 by measurement.
        cost: A client's work beside the others', so that a stack has clients of like length.
        on_notice: Called with why clients are trained one by one, each reason once.
    """

    def __init__(
        self,
        desk: MessageDispatcher,
        team: BatchedClientApp | None,
        stack: int,
        cost: Callable[[int], float],
        on_notice: OnNotice,
    ) -> None:
        self._desk, self._team, self._cost, self._on_notice = desk, team, cost, on_notice
        self.capacity = StackSizeTuner(torch.device("cpu") if team is None else team.device, stack)
        self._notified: set[str] = set()
        if team is not None and (obstacle := team.obstacle):
            self._notify_unsupported(obstacle)

    def deliver_all(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield one reply for each message; a client that fails does not fail its neighbours."""
        training = [message for message in messages if _trains(message)]
        training.sort(key=lambda message: -self._cost(_client(message)))
        while training:
            size = self.capacity.size
            yield from self._train(training[:size])
            training = training[size:]
        for message in messages:
            if not _trains(message):
                yield self._desk.deliver(message)

    def _train(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the replies to a stack's messages, first those of clients who must train alone."""
        stack: list[tuple[Message, TrainRequest]] = []
        for message in messages:
            request = self._task(message)
            if request is None:
                yield self._alone(message)
            else:
                stack.append((message, request))
        yield from self._train_stack(stack)

    def _alone(self, message: Message) -> Message:
        reply = self._desk.deliver(message)
        return reply if self._team is None else self._team.folded(message, reply)

    def _task(self, message: Message) -> TrainRequest | None:
        """Return a message's task, None where it must be done alone."""
        if self._team is None:
            return None
        try:
            request = self._team.request(message)
            unsupported_reason = self._team.unsupported_reason(request)
        except Exception:
            return None  # the client's own error has the reason
        if unsupported_reason:
            self._notify_unsupported(unsupported_reason)
        return None if unsupported_reason else request

    def _train_stack(self, stack: Sequence[tuple[Message, TrainRequest]]) -> Iterator[Message]:
        replies = self._attempt(stack) if len(stack) > 1 else {}
        yield from replies.values()
        left = [one for place, one in enumerate(stack) if place not in replies]
        fits = self.capacity.size
        if left and fits < len(stack):
            for start in range(0, len(left), fits):
                yield from self._train_stack(left[start : start + fits])
        else:
            yield from (self._alone(message) for message, _ in left)

    def _attempt(self, stack: Sequence[tuple[Message, TrainRequest]]) -> dict[int, Message]:
        """Train clients at once; return the replies by place in the stack, and none of those that failed.

        What is to be tried then is tried outside, as an exception keeps the memory of what failed alive.
        """
        assert self._team is not None
        replies: dict[int, Message] = {}
        messages, requests = zip(*stack, strict=True)
        try:
            with self.capacity.watch(len(stack)):
                for places, own in self._team.answer(messages, requests):
                    replies |= zip(places, own, strict=True)
        except torch.OutOfMemoryError:
            self.capacity.exceeded(len(stack))
            self._notify("memory", f"{len(stack)} clients at once do not fit into the device's memory")
        except (Exception, SystemExit) as error:
            self._notify(
                "failed", f"{len(stack)} clients are trained one by one, as they failed at once: {error}"
            )
        if why := self._team.failure_reason:
            self._notify(
                "recording", f"steps are launched kernel by kernel, as none could be recorded: {why}"
            )
        return replies

    def _notify_unsupported(self, reason: str) -> None:
        self._notify(reason, f"clients are trained one by one: {reason}")

    def _notify(self, reason: str, sentence: str) -> None:
        if reason not in self._notified:
            self._notified.add(reason)
            self._on_notice(sentence)


def _trains(message: Message) -> bool:
    return bool(message.metadata.message_type == MessageType.TRAIN)


def _client(message: Message) -> int:
    return message.metadata.dst_node_id - FIRST_NODE
