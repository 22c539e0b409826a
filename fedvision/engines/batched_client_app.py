"""Training messages answered several at a time: decoded, trained together, encoded, or summed on the spot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from flwr.app import Message

from fedvision.engines.partial_aggregation import PartialAggregator
from fedvision.flower import codec
from fedvision.flower.client_registry import FIRST_NODE
from fedvision.flower.internals_message import answer
from fedvision.training.client_trainer import ClientTrainer
from fedvision.training.loop import TrainResult
from fedvision.training.vectorized.client_batch import ClientBatchResult
from fedvision.training.vectorized.trainer import VectorizedTrainer
from fedvision.types import TrainRequest


class BatchedClientApp:
    """The clients of one worker, called by messages.

    Args:
        trainer: Trains them.
        aggregator: Sums their updates; None gives each its own.
        record: Whether steps are recorded and played back where the device can.
    """

    def __init__(
        self, trainer: ClientTrainer, aggregator: PartialAggregator | None = None, *, record: bool = True
    ) -> None:
        self._crew, self._folding = VectorizedTrainer.of(trainer, record=record), aggregator
        self._crew.settle()
        self.device: torch.device = trainer.settings.device
        """Where they are trained."""

    @property
    def failure_reason(self) -> str | None:
        """Why steps are not recorded any more, where they should be."""
        return None if self._crew.recorded is None else self._crew.recorded.failure_reason

    @property
    def obstacle(self) -> str | None:
        """Why clients are not trained together, whatever is asked of them; None where they can be."""
        return self._crew.obstacle

    def request(self, message: Message) -> TrainRequest:
        """Return the task of a message.

        Raises:
            Exception: The message is none that can be answered.
        """
        return codec.decode_task(message, message.metadata.dst_node_id - FIRST_NODE)

    def unsupported_reason(self, request: TrainRequest) -> str | None:
        """Return in one line why a task is not trained together with others; None where it can be."""
        return self._crew.unsupported_reason(request)

    def answer(
        self, messages: Sequence[Message], requests: Sequence[TrainRequest]
    ) -> Iterator[tuple[Sequence[int], Sequence[Message]]]:
        """Train clients on the tasks of their messages, as many at once as can be.

        Yields:
            Places in ``messages`` and the replies to these. An error of one client is raised and loses those
            that were trained with it, not those that were yielded before.
        """
        for places, trained in self._crew.train(requests):
            yield places, self._replies([messages[place] for place in places], trained)

    def _replies(
        self, messages: Sequence[Message], trained: ClientBatchResult | Sequence[TrainResult]
    ) -> list[Message]:
        if self._folding is not None and isinstance(trained, ClientBatchResult):
            return self._folding.add_stack(messages, trained)
        updates = trained.split() if isinstance(trained, ClientBatchResult) else trained
        both = zip(messages, updates, strict=True)
        return [self.folded(m, answer(codec.encode_update(update), m)) for m, update in both]

    def folded(self, message: Message, reply: Message) -> Message:
        """Return a reply that was made alone, its update in the sum where updates are summed."""
        return reply if self._folding is None else self._folding.add_update(message, reply)
