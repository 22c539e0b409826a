"""The serial engine: every client in this process, one after the other, as a Flower Grid.

Replies are made one at a time, when the strategy asks for the next, so memory does not grow with the cohort;
they come in the order in which the messages were sent, so sums have the same bits in every run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedvision.flower import internals
from fedvision.flower.hosting import Host, Recipe
from fedvision.flower.internals import PARTITION
from fedvision.flower.roster import FIRST_NODE


class SerialEngine:
    """Carries messages to clients in this process."""

    @contextmanager
    def open(self, recipe: Recipe, run_id: int = 1) -> Iterator[Grid]:
        """Open a Grid over the recipe's clients; one at a time in a process."""
        internals.identify(run_id)
        yield SerialGrid(recipe.open(), recipe.clients, run_id)


class SerialGrid(Grid):
    """A Flower Grid whose nodes are the clients of one host.

    Args:
        host: Answers the messages of every node.
        clients: Number of nodes; node ``FIRST_NODE + i`` has ``node_config["partition-id"] == i``.
        run_id: Flower's number of the run.
    """

    def __init__(self, host: Host, clients: int, run_id: int) -> None:
        self._host, self._clients, self._run_id = host, clients, run_id
        self._run = internals.empty_run(run_id)
        self._kept: dict[int, RecordDict] = {}
        self._ids = itertools.count(1)
        self._mail: dict[str, Message] = {}

    def set_run(self, run: internals.Run) -> None:
        """Replace the facts of the run."""
        self._run = run

    @property
    def run(self) -> internals.Run:
        """Facts of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message (part of Flower's interface; ``Message(...)`` does the same)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes, in the order of their partitions."""
        return range(FIRST_NODE, FIRST_NODE + self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages and keep the replies until they are pulled."""
        replies = list(self.send_and_receive(messages))
        self._mail.update({reply.metadata.reply_to_message_id: reply for reply in replies})
        return [reply.metadata.reply_to_message_id for reply in replies]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that were not yet pulled."""
        return [self._mail.pop(key) for key in message_ids if key in self._mail]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield one reply for each message, in order; a client works when its reply is asked for."""
        for message in messages:
            internals.set_message_id(message, f"m{next(self._ids)}")
            yield self._deliver(message)

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(
            run_id=self._run_id,
            node_id=node,
            node_config={PARTITION: node - FIRST_NODE, "num-partitions": self._clients},
            state=self._kept.get(node) or RecordDict(),
            run_config={},
        )
        try:
            reply = self._host.answer(message, context)
        except Exception as error:
            reply = Message(Error(code=internals.CLIENT_RAISED, reason=str(error)), reply_to=message)
        else:
            if context.state:
                self._kept[node] = context.state
        internals.set_message_id(reply, f"r{next(self._ids)}")
        return reply
