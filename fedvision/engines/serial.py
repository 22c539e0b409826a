"""The serial engine: every client in this process, one after the other, as a Flower Grid.

Replies are made one at a time, when the strategy reads the next, so memory does not grow with the cohort;
they come in the order in which the messages were sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flwr.app import Message
from flwr.serverapp import Grid

from fedvision.engines.base import OnNotice
from fedvision.engines.client_host import ClientHostFactory
from fedvision.engines.dispatcher import MessageDispatcher
from fedvision.engines.local_grid import LocalGrid
from fedvision.flower import internals


class SerialEngine:
    """Carries messages to clients in this process."""

    @contextmanager
    def open(
        self, host_factory: ClientHostFactory, *, run_id: int = 1, on_notice: OnNotice = print
    ) -> Iterator[Grid]:
        """Open a Grid over the recipe's clients; one at a time in a process."""
        internals.identify(run_id)
        yield SerialGrid(host_factory, run_id)


class SerialGrid(LocalGrid):
    """A Grid over one host; a client trains when its reply is read.

    Args:
        host_factory: Makes the host.
        run_id: Flower's number of the run.
    """

    def __init__(self, host_factory: ClientHostFactory, run_id: int) -> None:
        super().__init__(host_factory.clients, run_id)
        self._desk = MessageDispatcher(host_factory.open(), host_factory.clients, run_id)

    def carry(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Answer in the order of the messages."""
        return map(self._desk.deliver, messages)
