"""FedProx: FedAvg whose clients are held near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, "Federated Optimization in Heterogeneous Networks",
arXiv 1812.06127. Each client minimises its loss plus mu/2 ||w - w_global||^2; the server is FedAvg's. The
paper draws clients by their numbers of examples and averages plainly; here they are drawn evenly and averaged
by examples, as in FedAvg.
"""

from __future__ import annotations

from fedvision.algorithms.fedavg import FedAvg
from fedvision.types import ClientConfig, State


class FedProx(FedAvg):
    """FedAvg with the proximal objective.

    Args:
        mu: Strength of the pull, >= 0; 0 is FedAvg.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    objective = "prox"

    def __init__(self, *, mu: float = 0.01, fraction: float = 1.0, min_clients: int = 1) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        if not mu >= 0:
            raise ValueError(f"mu must be >= 0, not {mu}")
        self.mu = mu

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send mu."""
        return ClientConfig(objective=self.objective, numbers={"mu": self.mu})
