"""FedProx: FedAvg whose clients are held near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, "Federated Optimization in Heterogeneous Networks",
arXiv 1812.06127. Each client minimises its loss plus mu/2 ||w - w_global||^2; the server is FedAvg's. The
paper draws clients by their numbers of examples and averages plainly; here they are drawn evenly and averaged
by examples, as in FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import (
    ClientAlgorithm,
    Groups,
    Numbers,
    copy_like,
    gradient_columns,
    numbers_sent,
    pulls,
    shared_parameters,
)
from fedvision.types import ClientConfig, State, TrainRequest


class FedProxClient(ClientAlgorithm):
    """The pull towards the global model: mu/2 ||w - w_global||^2, whose gradient is mu (w - w_global).

    With momentum or an adaptive optimiser the pull goes through the optimiser, as the penalty of the paper
    would.
    """

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take mu and the global model's values.

        Raises:
            ClientError: The request has no number ``mu``.
        """
        self.numbers = numbers_sent(request, "FedProx", "mu")
        self.parameters = shared_parameters(parameters, request)
        anchors = {name: copy_like(request.state[name], p) for name, p in self.parameters.items()}
        self.groups = {"anchor": anchors}

    @staticmethod
    @torch.no_grad()
    def correct_gradients(parameters: Mapping[str, nn.Parameter], groups: Groups, numbers: Numbers) -> None:
        """Add mu (w - w_global) to each gradient."""
        weights, gradients, anchors = gradient_columns(parameters, groups["anchor"])
        if not weights:
            return
        torch._foreach_add_(gradients, pulls(weights, anchors, numbers["mu"]))


class FedProx(FedAvg):
    """FedAvg whose clients are held near the global model.

    Args:
        mu: Strength of the pull, >= 0; 0 is FedAvg.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedProxClient

    def __init__(self, *, mu: float = 0.01, fraction: float = 1.0, min_clients: int = 1) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, mu=mu)
        self.mu = mu

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send mu."""
        return ClientConfig(numbers={"mu": self.mu})
