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

from fedvision.engines.base import Tell
from fedvision.engines.capacity import Capacity
from fedvision.engines.desk import Desk
from fedvision.engines.grid import LocalGrid
from fedvision.flower import codec, internals
from fedvision.flower.hosting import Host, Recipe
from fedvision.flower.internals_message import answer
from fedvision.flower.roster import FIRST_NODE
from fedvision.types import Task


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
    def open(self, recipe: Recipe, *, run_id: int = 1, tell: Tell = print) -> Iterator[Grid]:
        """Open a Grid over the recipe's clients; one at a time in a process."""
        internals.identify(run_id)
        yield VectorizedGrid(recipe, run_id, self._stack, tell, record=self._record)


class VectorizedGrid(LocalGrid):
    """A Grid over one host; a stack of clients works when the reply of its first is asked for.

    Args:
        recipe: Makes the host.
        run_id: Flower's number of the run.
        stack: Clients that are trained at once; 0 by measurement.
        tell: Is told why clients are trained one by one, each reason once.
        record: Whether steps are recorded where the device can.
    """

    def __init__(self, recipe: Recipe, run_id: int, stack: int, tell: Tell, *, record: bool = True) -> None:
        super().__init__(recipe.clients, run_id)
        host = recipe.open()
        self._desk = StackingDesk(host, recipe.clients, run_id, stack, recipe.cost, tell, record=record)

    def carry(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Answer training messages in stacks, the longest clients first, then the others in order."""
        return self._desk.deliver_all(messages)


class StackingDesk(Desk):
    """Gives training messages to a host several at a time.

    Args:
        host: Answers the messages of every client.
        clients: Number of clients.
        run_id: Flower's number of the run.
        stack: Clients that are trained at once; 0 by measurement.
        cost: A client's work beside the others', so that a stack has clients of like length.
        tell: Is told why clients are trained one by one, each reason once.
        record: Whether steps are recorded where the device can.
    """

    def __init__(
        self,
        host: Host,
        clients: int,
        run_id: int,
        stack: int,
        cost: Callable[[int], float],
        tell: Tell,
        *,
        record: bool = True,
    ) -> None:
        super().__init__(host, clients, run_id)
        self._worker, self._cost, self._tell = host.worker, cost, tell
        device = torch.device("cpu") if host.worker is None else host.worker.settings.device
        self.capacity = Capacity(device, stack)
        self._recorded = self._worker.recorder() if self._worker is not None and record else None
        self._told: set[str] = set()

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
                yield self.deliver(message)

    def _train(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the replies to a stack's messages, first those of clients who must train alone."""
        stack: list[tuple[Message, Task]] = []
        for message in messages:
            task = self._task(message)
            if task is None:
                yield self.deliver(message)
            else:
                stack.append((message, task))
        yield from self._train_stack(stack)

    def _task(self, message: Message) -> Task | None:
        """Return a message's task, None where it must be done alone."""
        if self._worker is None:
            return None
        try:
            task = codec.decode_task(message, _client(message))
            obstacle = self._worker.obstacle(task)
        except Exception:
            return None  # the client will say itself what is wrong
        if obstacle:
            self._say(obstacle, f"clients are trained one by one: {obstacle}")
        return None if obstacle else task

    def _train_stack(self, stack: Sequence[tuple[Message, Task]]) -> Iterator[Message]:
        replies = self._attempt(stack) if len(stack) > 1 else None
        fits = self.capacity.size
        if replies is not None:
            yield from replies
        elif fits < len(stack):
            for start in range(0, len(stack), fits):
                yield from self._train_stack(stack[start : start + fits])
        else:
            yield from (self.deliver(message) for message, _ in stack)

    def _attempt(self, stack: Sequence[tuple[Message, Task]]) -> list[Message] | None:
        """Train clients at once; return None where that failed.

        What is to be tried then is tried outside, as an exception keeps the memory of what failed alive.
        """
        assert self._worker is not None
        try:
            with self.capacity.watch(len(stack)):
                updates = self._worker.train_many([task for _, task in stack], recorded=self._recorded)
            pairs = zip(stack, updates, strict=True)
            if self._recorded is not None and self._recorded.trouble:
                self._say("record", f"steps are launched kernel by kernel: {self._recorded.trouble}")
            return [answer(codec.encode_update(update), message) for (message, _), update in pairs]
        except torch.OutOfMemoryError:
            self.capacity.exceeded(len(stack))
            self._say("memory", f"{len(stack)} clients at once do not fit into the device's memory")
        except Exception as error:
            self._say(
                "failed", f"{len(stack)} clients are trained one by one, as they failed at once: {error}"
            )
        return None

    def _say(self, reason: str, sentence: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            self._tell(sentence)


def _trains(message: Message) -> bool:
    return bool(message.metadata.message_type == MessageType.TRAIN)


def _client(message: Message) -> int:
    return message.metadata.dst_node_id - FIRST_NODE
