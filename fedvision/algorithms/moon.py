"""MOON: FedAvg whose clients keep their features near the global model's and away from their own last ones.

Li, He, Song 2021, "Model-Contrastive Federated Learning", arXiv 2103.16257. Each client minimises its loss
plus ``mu`` times::

    -log( exp(s_x / tau) / (exp(s_x / tau) + exp(s_k / tau)) )        s_x = cos(z, z_x), s_k = cos(z, z_k)

with the features z of the model that is trained, z_x of the model that the round began with and z_k of the
model with which this client ended its last round. A client that has none has no such term, as both would be
one and its gradient 0.

Here z are the features of the network's own backbone; the paper adds a projection of two layers to the
network and contrasts its outputs. The task's loss can be any of the package's. Both other models are in
evaluation mode and see the same augmented batch. Each step takes two further forward passes without
gradients; a client holds the backbone three times and keeps one between rounds. As backbone and head are
called one after the other, ``training.compile`` does not quicken them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ConfigError
from fedvision.inputs import Batch
from fedvision.models.base import feature_rows, halves
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent, to_storage
from fedvision.types import ClientConfig, LossFn, State, TrainRequest

_NEEDED_BY = "[strategy] use = 'moon'"


class MoonClient(ClientAlgorithm):
    """The task's loss and the model-contrastive one; the client keeps its trained backbone."""

    sees_images = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Copy the global model's backbone, and the client's last one where it has one.

        Raises:
            ClientError: The request has no number ``mu`` or ``tau``.
            ConfigError: The network has no backbone, or trains nothing of it.
        """
        numbers = numbers_sent(request, "MOON", "mu", "tau")
        self._mu, self._tau = numbers["mu"], numbers["tau"]
        self._trained, self._memory = halves(model, _NEEDED_BY).backbone, memory
        if not any(p.requires_grad for p in self._trained.parameters()):
            raise ConfigError(
                f"{_NEEDED_BY} is about features, and nothing of the backbone is trained; use 'fedavg', or "
                "train more in [model]"
            )
        self._global = copy.deepcopy(self._trained).eval().requires_grad_(False)
        self._last = copy.deepcopy(self._global) if memory else None
        if self._last is not None:
            own = self._last.state_dict()
            for name in own.keys() & memory.keys():
                own[name].copy_(memory[name])

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the task's loss plus ``mu`` times the model-contrastive one of each example [B]."""
        network = halves(model, _NEEDED_BY)
        features = network.backbone(x)
        losses = task_loss(network.head(features), labels)
        features = feature_rows(features, _NEEDED_BY)
        if self._last is None:
            return losses
        with torch.no_grad():
            wanted, former = self._global(x), self._last(x)
        return losses + self._mu * contrast(features, wanted, former, self._tau)

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the trained backbone; with a lost model the client keeps the one before."""
        kept = {name for name, p in self._trained.named_parameters() if not p.requires_grad}
        state = {
            name: tensor.detach().clone()
            for name, tensor in self._trained.state_dict().items()
            if tensor.is_floating_point() and name not in kept
        }
        sound = all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
        return {}, to_storage(state) if sound else self._memory


class Moon(FedAvg):
    """FedAvg with the model-contrastive loss on the clients.

    Args:
        mu: Weight of the contrast, >= 0; 0 is FedAvg. The paper takes the best of 0.1, 1, 5 and 10.
        tau: Temperature of the similarities, > 0.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = MoonClient

    def __init__(
        self, *, mu: float = 1.0, tau: float = 0.5, fraction: float = 1.0, min_clients: int = 1
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, mu=mu)
        check_range(above=0, tau=tau)
        self.mu, self.tau = mu, tau

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send mu and tau."""
        return ClientConfig(numbers={"mu": self.mu, "tau": self.tau})


def contrast(features: torch.Tensor, wanted: torch.Tensor, former: torch.Tensor, tau: float) -> torch.Tensor:
    """Return ``-log(e^a / (e^a + e^b))`` [B], a and b the similarities to two models' features over tau.

    Args:
        features: Of the model that is trained [B, ...].
        wanted: Of the model to be near to [B, ...].
        former: Of the model to be away from [B, ...].
        tau: Temperature, > 0.
    """
    # float32 whatever the forward pass computed in: bfloat16 has 8 bits for a difference of cosines.
    own, near, far = (z.flatten(1).float() for z in (features, wanted, former))
    return F.softplus((F.cosine_similarity(own, far) - F.cosine_similarity(own, near)) / tau)
