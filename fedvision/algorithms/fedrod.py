"""FedRoD: a generic head that the federation averages, and beside it one of each client's own.

Chen and Chao 2022, "On Bridging Generic and Personalized Federated Learning for Image Classification", ICLR
2022, arXiv 2107.00778. With features f of an image, the generic head W, b and client k's own head P_k, d_k::

    z = W f + b              the federation's prediction, trained together with the backbone
    z_k = z + P_k f + d_k    client k's prediction; P_k and d_k are trained with z and f held fixed

Each client minimises ``loss(z) - log softmax(z_k)_y``. The first is the experiment's loss: the paper's is
balanced softmax by the client's own class counts, ``[loss] use = "balanced-softmax"`` with ``prior =
"local"``, so that all clients aim at a balanced model, and a notice says so where it is plain cross-entropy.
The second aims at the client's own images as they are. W, b and the backbone are averaged as in FedAvg and
are, to the bit, what FedAvg with the same loss makes; P_k and d_k stay on the client.

The network needs ``model.head = "personalized"`` and ``model.personal = ["head.personal.*"]``. Own parts
begin at zero: the server measures z on its test images, clients measure z_k on their held-out ones
(``evaluation.holdout``), and the finished model is the generic one.

What differs from the paper: clients are averaged by images over the round's cohort, as FedAvg here; own heads
begin at zero, and its hypernetwork that makes the first own head of a new client from its class counts is
left out, so such a client predicts with z. PFLlib trains the own head by plain SGD after each step of the
rest; here both take one step of the experiment's optimiser, and ``training.clip_norm`` clips them together.
FL-bench leaves z out of z_k and lets the own head's loss train the backbone, which is another method.

A client keeps C (D + 1) numbers. A round sends what FedAvg's does, and a step costs a second linear layer. As
backbone and head are called one after the other, ``training.compile`` does not quicken them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.second_heads import check_labels, head_of, plain_loss
from fedvision.inputs import Batch
from fedvision.models.base import halves
from fedvision.models.personalized_heads import PersonalizedHead
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import LossFn, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_NEEDED_BY = "[strategy] use = 'fedrod'"


class FedRoDClient(ClientAlgorithm):
    """The task's loss of the generic head, and the plain one of the client's own on top of it."""

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Look at the head.

        Raises:
            ConfigError: It has no part of the client's own, or that part does not stay on the client.
        """
        self._client = request.client
        head_of(model, PersonalizedHead, "personalized", request, _NEEDED_BY)

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the sum of both losses of each example [B]; the second one trains the own head alone.

        Raises:
            ClientError: The examples have not one label each.
        """
        network = halves(model, _NEEDED_BY)
        head = network.head
        assert isinstance(head, PersonalizedHead)
        features = network.backbone(x)
        generic = head.generic(features)
        check_labels(generic, labels, self._client, "FedRoD")
        personal = generic.detach() + head.personal(features.detach())
        return task_loss(generic, labels) + plain_loss(personal, labels, task_loss)


class FedRoD(FedAvg):
    """FedAvg of a generic predictor, with a head of each client's own on top of it.

    Args:
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedRoDClient
    trains_generic = True

    def notices(self, config: ExperimentConfig) -> Sequence[str]:
        """Say what the paper's loss is where the experiment's is the plain one."""
        if config.loss.use != "cross-entropy":
            return ()
        return (
            f"{_NEEDED_BY} trains the generic head with [loss], which is plain cross-entropy; the paper's is "
            'loss = { use = "balanced-softmax", prior = "local" }',
        )
