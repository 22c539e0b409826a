"""Where a host's messages are answered one by one, each client with a context of its own."""

from __future__ import annotations

from flwr.app import Context, Error, Message, RecordDict

from fedvision.engines.client_host import ClientHost
from fedvision.flower import internals
from fedvision.flower.client_registry import FIRST_NODE
from fedvision.flower.internals import PARTITION


class MessageDispatcher:
    """Gives messages to a host and turns what it raises into error replies.

    Args:
        host: Answers the messages of every client.
        clients: Number of clients.
        run_id: Flower's number of the run.
    """

    def __init__(self, host: ClientHost, clients: int, run_id: int) -> None:
        self._host, self._clients, self._run_id = host, clients, run_id
        self._states: dict[int, RecordDict] = {}

    def deliver(self, message: Message) -> Message:
        """Return the reply to one message, an error reply where the client's work raised."""
        node = message.metadata.dst_node_id
        context = Context(
            run_id=self._run_id,
            node_id=node,
            node_config={PARTITION: node - FIRST_NODE, "num-partitions": self._clients},
            state=self._states.get(node) or RecordDict(),
            run_config={},
        )
        try:
            reply = self._host.answer(message, context)
        except Exception as error:
            return Message(Error(code=internals.CLIENT_RAISED, reason=str(error)), reply_to=message)
        if context.state:
            self._states[node] = context.state
        return reply
