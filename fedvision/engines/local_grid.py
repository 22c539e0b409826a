"""What every engine's Grid shares: the facts of the run, the nodes, and the mailbox of Flower's interface."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedvision.flower import internals
from fedvision.flower.client_registry import FIRST_NODE


class LocalGrid(Grid):
    """A Flower Grid whose nodes are clients 0, 1, ... of this program; ``carry`` is all that is missing.

    Args:
        clients: Number of nodes; node ``FIRST_NODE + k`` is client k.
        run_id: Flower's number of the run.
    """

    def __init__(self, clients: int, run_id: int) -> None:
        self.clients, self.run_id = clients, run_id
        self._run = internals.empty_run(run_id)
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
        """Return all nodes, in the order of their clients."""
        return range(FIRST_NODE, FIRST_NODE + self.clients)

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
        """Yield one reply for each message, as they come; there is no timeout within one program."""
        sent = list(messages)
        for message in sent:
            internals.set_message_id(message, f"m{next(self._ids)}")
        for reply in self.carry(sent):
            internals.set_message_id(reply, f"r{next(self._ids)}")
            yield reply
            # Let go before the next one is made, or two models are in memory.
            del reply

    @abstractmethod
    def carry(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the replies to messages that have their ids."""
