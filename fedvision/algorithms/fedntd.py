"""FedNTD: FedAvg whose clients distil the global model's view of the classes that an image is not of.

Lee, Jeong, Shin, Bae, Yun 2022, "Preservation of the Global Knowledge by Not-True Distillation in Federated
Learning", arXiv 2106.03097. A client's data has few of some classes, and training on it unlearns what the
global model knew of them. Each client minimises its loss plus::

    beta * tau^2 * KL(q_global || q_local)        q = softmax over the classes c != y of z_c / tau

with the logits z of the model that the round began with (teacher) and of the one that is trained. The true
class is left out, so that the task's loss alone decides on it. The factor tau^2, which keeps the size of the
gradients whatever tau is, is that of Hinton et al. 2015, arXiv 1503.02531. The authors' code
(github.com/Lee-Gihun/FedNTD) has no such factor; their experiments have tau = 1, where it is 1.

The task's loss can be any of the package's, not only the paper's cross-entropy. The teacher is in evaluation
mode. Each step takes one further forward pass without gradients, and a client holds the model twice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ClientError
from fedvision.inputs import Batch
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent
from fedvision.types import ClientConfig, LossFn, State, TrainRequest


class FedNTDClient(ClientAlgorithm):
    """The task's loss plus the distillation of the classes that an image is not of."""

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Keep a copy of the model as the teacher, with the client's personal tensors.

        Raises:
            ClientError: The request has no number ``beta`` or ``tau``.
        """
        self._client = request.client
        numbers = numbers_sent(request, "FedNTD", "beta", "tau")
        self._beta, self._tau = numbers["beta"], numbers["tau"]
        self._teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the task's loss plus ``beta tau^2 KL`` of each example [B].

        Raises:
            ClientError: The examples have not one label each, or there are fewer than three classes.
        """
        logits = model(x)
        if labels.dim() != 1 or logits.dim() != 2 or logits.shape[1] < 3:
            raise ClientError(
                self._client,
                "training",
                "FedNTD distils the classes that an image is not of: it needs one label an image and three "
                f"classes or more, not logits {list(logits.shape)} with labels {list(labels.shape)}",
            )
        with torch.no_grad():
            teacher = self._teacher(x)
        distilled = not_true_divergence(logits, teacher, labels, self._tau)
        return task_loss(logits, labels) + self._beta * self._tau**2 * distilled


class FedNTD(FedAvg):
    """FedAvg with not-true distillation on the clients.

    Args:
        beta: Weight of the distillation, >= 0; 0 is FedAvg.
        tau: Temperature of both models' predictions, > 0; larger makes the less likely classes count more.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedNTDClient

    def __init__(
        self, *, beta: float = 1.0, tau: float = 1.0, fraction: float = 1.0, min_clients: int = 1
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, beta=beta)
        check_range(above=0, tau=tau)
        self.beta, self.tau = beta, tau

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send beta and tau."""
        return ClientConfig(numbers={"beta": self.beta, "tau": self.tau})


def not_true_divergence(
    logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, tau: float
) -> torch.Tensor:
    """Return KL(teacher || student) over the classes that are not an example's own [B].

    Args:
        logits: The student's [B, C], C >= 3.
        teacher: The teacher's [B, C], without gradient.
        labels: int64 [B].
        tau: Temperature, > 0.
    """
    true = nn.functional.one_hot(labels, logits.shape[1]).bool()

    def log_probabilities(z: torch.Tensor) -> torch.Tensor:
        # float32 whatever the forward pass computed in: bfloat16 has 8 bits for a difference of logarithms.
        own = z.float().div(tau).masked_fill(true, -torch.inf).log_softmax(dim=1)
        return own.masked_fill(true, 0.0)

    student, target = log_probabilities(logits), log_probabilities(teacher)
    weights = target.exp().masked_fill(true, 0.0)
    return (weights * (target - student)).sum(dim=1)
