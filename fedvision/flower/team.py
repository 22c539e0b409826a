"""Training messages answered several at a time: decoded, trained together, encoded, or summed on the spot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from flwr.app import Message

from fedvision.flower import codec
from fedvision.flower.folding import Folding
from fedvision.flower.internals_message import answer
from fedvision.flower.roster import FIRST_NODE
from fedvision.training.crew import Crew
from fedvision.training.loop import LocalUpdate
from fedvision.training.stack import Stacked
from fedvision.training.worker import Worker
from fedvision.types import Task


class Team:
    """The clients of one worker, asked by messages.

    Args:
        worker: Trains them.
        folding: Sums their updates; None gives each its own.
        record: Whether steps are recorded and played back where the device can.
    """

    def __init__(self, worker: Worker, folding: Folding | None = None, *, record: bool = True) -> None:
        self._crew, self._folding = Crew.of(worker, record=record), folding
        self._crew.settle()
        self.device: torch.device = worker.settings.device
        """Where they are trained."""

    @property
    def trouble(self) -> str | None:
        """Why steps are not recorded any more, where they should be."""
        return None if self._crew.recorded is None else self._crew.recorded.trouble

    def task(self, message: Message) -> Task:
        """Return what a message asks for.

        Raises:
            Exception: The message is none that can be answered.
        """
        return codec.decode_task(message, message.metadata.dst_node_id - FIRST_NODE)

    def obstacle(self, task: Task) -> str | None:
        """Return in one line why a task is not trained together with others; None where it can be."""
        return self._crew.obstacle(task)

    def answer(
        self, messages: Sequence[Message], tasks: Sequence[Task]
    ) -> Iterator[tuple[Sequence[int], Sequence[Message]]]:
        """Train clients on the tasks of their messages, as many at once as can be.

        Yields:
            Places in ``messages`` and the replies to these. An error of one client is raised and loses those
            that were trained with it, not those that were yielded before.
        """
        for places, trained in self._crew.train(tasks):
            yield places, self._replies([messages[place] for place in places], trained)

    def _replies(
        self, messages: Sequence[Message], trained: Stacked | Sequence[LocalUpdate]
    ) -> list[Message]:
        if self._folding is not None and isinstance(trained, Stacked):
            return self._folding.fold_stack(messages, trained)
        updates = trained.split() if isinstance(trained, Stacked) else trained
        both = zip(messages, updates, strict=True)
        return [self.folded(m, answer(codec.encode_update(update), m)) for m, update in both]

    def folded(self, message: Message, reply: Message) -> Message:
        """Return a reply that was made alone, its update in the sum where updates are summed."""
        return reply if self._folding is None else self._folding.fold(message, reply)
