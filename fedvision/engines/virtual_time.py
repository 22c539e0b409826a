"""Simulated time over any engine: every client takes its time, and answers when that is over.

A client's work is done when its reply is due and not when it is requested, so nothing is held for clients who
are at work but the model that they were sent, and an engine gets all that is due at a time. Nothing depends
on the machine's clock: the same experiment has the same rounds, bits and seconds on every engine.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from flwr.app import Error, Message, MessageType
from flwr.serverapp import Grid

from fedvision import seeding
from fedvision.config import ExperimentConfig
from fedvision.engines.local_grid import LocalGrid
from fedvision.flower import codec, internals
from fedvision.flower.client_registry import FIRST_NODE


def latency_model(config: ExperimentConfig, images: Callable[[int], float]) -> Callable[[int, int], float]:
    """Return a function of the seconds that a client's training takes in a round.

    A client's speed is log-normal, and so is what a round adds to it:
    ``images * seconds_per_image * exp(spread z_client + jitter z_round_client)``, z standard normal.

    Args:
        config: The experiment.
        images: Images that a client's training sees in a round: repeats counted, those held out not.
    """
    clock, seed = config.clock, config.seed

    def seconds(client: int, round: int) -> float:
        slow = clock.spread * seeding.numpy_stream(seed, "speed", client).standard_normal()
        slow += clock.jitter * seeding.numpy_stream(seed, "speed", round, client).standard_normal()
        return images(client) * clock.seconds_per_image * math.exp(slow)

    return seconds


def in_time(grid: Grid, config: ExperimentConfig, images: Callable[[int], float]) -> Grid:
    """Return a grid as it is, or one with simulated time where the experiment has some.

    Args:
        grid: An engine's.
        config: The experiment.
        images: As for ``latency_model``.
    """
    if not config.timed or not isinstance(grid, LocalGrid):
        return grid
    return VirtualTimeGrid(grid, latency_model(config, images), seed=config.seed, most=config.round.buffer)


@dataclass(frozen=True, order=True)
class _Due:
    """A message whose answer is due at a time; among equals by lot, so that no client's number matters."""

    at: float
    lot: int
    message: Message = field(compare=False)

    @property
    def node(self) -> int:
        """Who answers it."""
        return int(self.message.metadata.dst_node_id)

    @property
    def kind(self) -> str:
        """The message's type."""
        return str(self.message.metadata.message_type)


class VirtualTimeGrid(LocalGrid):
    """A Grid in which answers come after the seconds that their clients take.

    Args:
        inner: Does the work.
        seconds: Returns how long a client's training takes in a round.
        seed: Root seed, for the order of answers that are due at the same time.
        most: Answers that are worked out at a time at most; 0 works out all that are due.
    """

    simulated = True

    def __init__(
        self, inner: LocalGrid, seconds: Callable[[int, int], float], *, seed: int, most: int = 0
    ) -> None:
        super().__init__(inner.clients, inner.run_id)
        self._inner, self._seconds, self._seed, self._most = inner, seconds, seed, most
        self._now = 0.0
        self._due: list[_Due] = []
        self._working: Iterator[Message] | None = None
        self._batch: dict[int, Message] = {}
        self._done: dict[int, Message] = {}

    def carry(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Answer at once: questions and measurements take no simulated time."""
        self._settle()
        return iter(self._inner.send_and_receive(messages))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Answer at once."""
        return self.carry(list(messages))

    def now(self) -> float:
        """Return the simulated seconds since the run began."""
        return self._now

    def post(self, messages: Sequence[Message]) -> None:
        """Give clients their work."""
        self.resume(messages, [self._now] * len(messages), self._now)

    def resume(self, messages: Sequence[Message], since: Sequence[float], now: float) -> None:
        """Give clients work that they began before."""
        self._settle()
        self._now = now
        for message, began in zip(messages, since, strict=True):
            client, round = message.metadata.dst_node_id - FIRST_NODE, codec.round_of(message.content)
            trains = message.metadata.message_type == MessageType.TRAIN
            due = began + self._seconds(client, round) if trains else began
            bisect.insort(self._due, _Due(due, seeding.derive(self._seed, "lot", round, client), message))

    def watch(self, limit: Callable[[], float], kind: str = "") -> Iterator[tuple[Message, Message]]:
        """Yield messages with their replies in the order in which they are due; as ``AsyncGrid.watch``."""
        while True:
            place = next((p for p, due in enumerate(self._due) if not kind or due.kind == kind), None)
            if place is None:
                return
            due, end = self._due[place], limit()
            if due.at > end:
                self._now = max(self._now, end)
                return
            reply = self._answer(due, [d for d in self._due if d.at <= end and d.kind == due.kind])
            del self._due[place]
            self._now = max(self._now, due.at)
            yield due.message, reply

    def ready(self) -> list[Message]:
        """Return the messages whose answers are due."""
        return [due.message for due in self._due if due.at <= self._now]

    def wait(self, until: float) -> None:
        """Move the clock to when one more answer is due, or to ``until``."""
        ahead = [due.at for due in self._due if due.at > self._now]
        self._now = max(self._now, min([*ahead[:1], until]))

    def _answer(self, due: _Due, wanted: Sequence[_Due]) -> Message:
        """Return the answer to a message; others that are wanted are worked out with it."""
        flushed = False
        while (key := id(due.message)) not in self._done:
            if self._working is None:
                if flushed:
                    silent = Error(code=internals.CLIENT_RAISED, reason="it did not answer")
                    return Message(silent, reply_to=due.message)
                self._begin(wanted)
                flushed = True
            self._step()
        return self._done.pop(key)

    def _begin(self, wanted: Sequence[_Due]) -> None:
        """Let the engine work on the messages that are due next, one for each client."""
        self._batch = {}
        for due in wanted:
            if due.node in self._batch or 0 < self._most <= len(self._batch):
                break
            if id(due.message) not in self._done:
                self._batch[due.node] = due.message
        self._working = iter(self._inner.send_and_receive(list(self._batch.values())))

    def _step(self) -> None:
        """Take one reply from the engine."""
        assert self._working is not None
        reply = next(self._working, None)
        if reply is None:
            self._working = None
        else:
            self._done[id(self._batch[reply.metadata.src_node_id])] = reply

    def _settle(self) -> None:
        """Let the engine finish what it is working on: it does one thing at a time."""
        while self._working is not None:
            self._step()
