"""Measure a model as it begins: nobody trains, and no round changes it."""

from __future__ import annotations

from collections.abc import Sequence

from fedvision.algorithms.base import Answer, QueryStrategy, ServerContext
from fedvision.types import Query, State


class ZeroShot(QueryStrategy):
    """The model as it begins, measured on the server's test images and on what clients keep out of training.

    A round counts the clients' images by class, which any client answers that shares its class counts.

    Args:
        fraction: Share of the clients that answer, 0 < fraction <= 1.
        min_clients: Clients that answer at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        """Query class counts."""
        return None if answers else Query(use="class-counts")

    def refine(self, state: State, server: ServerContext) -> State:
        """Return a model with the same tensors."""
        return dict(state)
