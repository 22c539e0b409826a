"""FedRep: clients average a representation, and each fits a head of its own to it before it trains it on.

Collins, Hassani, Mokhtari, Shakkottai 2021, "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, arXiv 2102.07078. In each round a client first trains its head h_k for ``head_epochs``
epochs with the representation x as it was sent, then the representation for the experiment's epochs (or
steps) with the head fixed::

    h_k <- steps of grad_h loss(x, h)      y_k <- steps of grad_y loss(y, h_k)
    x   <- sum_k n_k y_k / sum_k n_k

FedPer trains both in every step. The head is what ``model.personal`` names, ``["head.*"]`` where it names
nothing; it stays with the client.

The paper averages plainly and draws clients anew each round; here they are weighted by images, as in FedAvg.
The authors' code keeps one optimiser for both passes, so that momentum outlives a pass; here each pass has
its own. Both passes draw their batches from streams of their own, and both are in the training loss. Batch
norm of the representation measures the batches of both.

Costs: ``head_epochs`` further passes a round, without gradients of the representation; only the
representation travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ConfigError
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm, Pass, numbers_sent, shared_parameters
from fedvision.types import ClientConfig, State, TrainRequest

_NEEDED_BY = "[strategy] use = 'fedrep'"


class FedRepClient(ClientAlgorithm):
    """Trains what stays with the client, then what is shared."""

    rehearsed = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Find which parameters stay with the client.

        Raises:
            ClientError: The request has no number ``head_epochs``.
            ConfigError: None of those that are trained stays with the client, or none is shared.
        """
        self._epochs = int(numbers_sent(request, "FedRep", "head_epochs")["head_epochs"])
        self._shared = frozenset(shared_parameters(parameters, request))
        self._own = frozenset(parameters) - self._shared
        if not self._own or not self._shared:
            what = "averages a trained part of the network" if self._own else "has clients train a head"
            raise ConfigError(
                f"{_NEEDED_BY} {what}, and model.personal and what is frozen leave none; set "
                'model.personal = ["head.*"] and train more in [model]'
            )

    def passes(self) -> Sequence[Pass]:
        """Return the pass of the head and that of the representation."""
        return Pass(stream="head", epochs=self._epochs, trained=self._own), Pass(trained=self._shared)


class FedRep(FedAvg):
    """FedAvg of the representation; each client's head is fitted to it first.

    Args:
        head_epochs: Epochs of the head in each round, >= 1.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedRepClient

    def __init__(self, *, head_epochs: int = 10, fraction: float = 1.0, min_clients: int = 1) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=1, head_epochs=head_epochs)
        self.head_epochs = head_epochs

    def personal(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return the experiment's patterns, the head where there are none."""
        return given or ("head.*",)

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send the number of epochs."""
        return ClientConfig(numbers={"head_epochs": self.head_epochs})
