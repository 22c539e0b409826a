"""What an engine is: something that opens a Flower Grid over the hosts of a recipe, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from flwr.serverapp import Grid

from fedvision.engines.client_host import ClientHostFactory

OnNotice: TypeAlias = Callable[[str], None]
"""Takes one sentence for the person who runs the federation."""


class Engine(Protocol):
    """Carries messages between one ServerApp and many clients.

    Node ``FIRST_NODE + k`` of the Grid is client k. Replies may come in any order. A Grid with a true
    attribute ``pre_aggregates`` answers training messages with sums where ``aggregator`` allows it. One that
    has other processes work may have a method ``peak_memory`` that returns ``memory.peak`` of each.
    """

    def open(
        self, host_factory: ClientHostFactory, *, run_id: int = 1, on_notice: OnNotice = print
    ) -> AbstractContextManager[Grid]:
        """Open a Grid over the recipe's clients; leaving the block closes it.

        Args:
            host_factory: Makes what answers the messages, in whichever process does the work.
            run_id: Flower's number of the run.
            on_notice: Is called with one sentence where a person should know of something: a worker that was
                replaced, a model that cannot be stacked.
        """
