"""What an engine is: something that opens a Flower Grid over the hosts of a recipe, and nothing more."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from flwr.serverapp import Grid

from fedvision.flower.hosting import Recipe


class Engine(Protocol):
    """Carries messages between one ServerApp and many clients.

    Node ``FIRST_NODE + k`` of the Grid is client k. Replies may come in any order. A Grid with a true
    attribute ``folds`` answers training messages with sums where the host's ``folding`` allows it.
    """

    def open(self, recipe: Recipe, run_id: int = 1) -> AbstractContextManager[Grid]:
        """Open a Grid over the recipe's clients; leaving the block closes it."""
