"""Clients with learning rates of their own: one that was selected often takes smaller steps."""

from __future__ import annotations

from fedvision.algorithms.fedavg import FedAvg
from fedvision.types import ClientConfig, State


class SlowerWhenFrequent(FedAvg):
    """FedAvg in which a client's rate falls with the square root of the rounds it has worked in.

    With few clients a round, some are drawn early and often; their images would shape the model the most.
    """

    def __init__(self, *, fraction: float = 1.0, min_clients: int = 1) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        self.requested: dict[int, int] = {}
        """Rounds in which each client was selected; saved in checkpoints as every attribute of numbers is."""

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Return the client's factor on the round's learning rate."""
        self.requested[client] = self.requested.get(client, 0) + 1
        return ClientConfig(lr_factor=self.requested[client] ** -0.5)
