"""Ditto: each client trains a personal model that is held near the global one, beside FedAvg.

Li, Hu, Beirami, Smith 2021, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv 2012.04221, Algorithm 1. The global model is FedAvg's. In the rounds in which a client works it also
takes steps on its personal model v_k, which it minimises::

    loss(v_k) + lam/2 ||v_k - x||^2        x the global model that it was sent

``lam`` is the paper's lambda: 0 is training alone, a large one gives v_k = x. Clients that differ get models
of their own, and an attacker who spoils x spoils them less.

As in the authors' code both models see the same mini-batches; there they are trained in turns batch by batch
with plain SGD, here one after the other with the experiment's optimiser, which comes to the same, as neither
reads the other's steps. v_k begins as the global model of the first round in which the client works, where
the paper has w^0 for all. The global model is weighted by images; the authors' code draws clients by images
and averages plainly. Its search for each client's lambda on validation images is not part of this.

v_k never leaves the client: it lies on its disk (a model's bytes), is measured on the images that the client
holds out, and what is counted there is in the report beside the global model's scores. Until a client has
worked once, its personal model is the global one. A lost answer does not take v_k back.

Costs: ``personal_epochs`` further passes over the images a round; during training a client holds the
network's tensors three times. Traffic is FedAvg's. ``model.personal`` has nothing to add and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedprox import FedProxClient
from fedvision.models.state import counters, get_state, load_state
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import (
    Pass,
    copy_like,
    numbers_sent,
    shared_parameters,
    to_storage,
)
from fedvision.types import ClientConfig, State, TrainRequest


class DittoClient(FedProxClient):
    """Trains the global model as it is, then the personal one with a pull towards what was sent."""

    personal_model = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take lambda and the number of epochs, and note both models' beginnings.

        Raises:
            ClientError: The request has no number ``lam`` or ``personal_epochs``.
        """
        numbers = numbers_sent(request, "Ditto", "lam", "personal_epochs")
        self.numbers = {"mu": numbers["lam"]}
        self._epochs = int(numbers["personal_epochs"])
        self._model, self._sent, self._memory = model, request.state, memory
        self._pulled = shared_parameters(parameters, request)
        self._counters = get_state(model, counters(model))
        self.groups = {"anchor": {}}

    def passes(self) -> Sequence[Pass]:
        """Return the global model's pass, as FedAvg's, and the personal one's over the same batches."""
        return Pass(), Pass(epochs=self._epochs, counted=False)

    def begin_pass(self, place: int) -> None:
        """Put the personal model in the place of the trained global one."""
        if place == 0:
            return
        self._trained = get_state(self._model, [*self._sent, *self._counters])
        own = {name: self._memory.get(name, tensor) for name, tensor in self._sent.items()}
        load_state(self._model, own | self._counters)
        self.parameters = self._pulled
        self.groups = {"anchor": {n: copy_like(self._sent[n], p) for n, p in self._pulled.items()}}

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the personal model, the one before where it was lost, and put the global one back."""
        own = get_state(self._model, self._sent)
        load_state(self._model, self._trained)
        sound = all(bool(torch.isfinite(tensor).all()) for tensor in own.values())
        return {}, to_storage(own) if sound else self._memory

    @staticmethod
    def personal_state(memory: State, state: State) -> State:
        """Return v_k."""
        return {name: memory.get(name, tensor) for name, tensor in state.items()}


class Ditto(FedAvg):
    """FedAvg beside which each client trains a personal model that is held near the global one.

    Args:
        lam: Strength of the pull, the paper's lambda, >= 0; 0 trains each client alone.
        personal_epochs: Epochs of the personal model in a round, >= 0; 0 takes as many epochs, or steps, as
            the global model.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = DittoClient

    def __init__(
        self, *, lam: float = 1.0, personal_epochs: int = 0, fraction: float = 1.0, min_clients: int = 1
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, lam=lam, personal_epochs=personal_epochs)
        self.lam, self.personal_epochs = lam, personal_epochs

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send lambda and the number of epochs."""
        return ClientConfig(numbers={"lam": self.lam, "personal_epochs": self.personal_epochs})
