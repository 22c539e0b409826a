"""FedLoGe: a backbone trained by a fixed head, two heads on its features, and rows of equal norm at the end.

Xiao, Chen, Liu, Feng, Wu, Liu, Zhou, Yang, Liu 2024, "FedLoGe: Joint Local and Generic Federated Learning
under Long-tailed Data", ICLR 2024, arXiv 2401.08977. With features f of an image, the fixed sparse simplex
ETF M (``fedvision.models.etf``), the federation's auxiliary head w, b and client k's own head phi, d, each
client minimises::

    loss(scale M f) - log softmax(w f + b)_y - log softmax(phi f + d)_y

where f is held fixed in the last two: the ETF, which favours no class, trains the backbone, and the heads
learn how frequent the classes are in the federation and at the client. That is in their rows' norms, so
predictions take other norms ("feature realignment"), m the mean norm of the rows w_c::

    z_c   = m w_c f / ||w_c|| + b_c                  the federation's prediction: equal norms
    z_k,c = (1 + ||phi_c||) w_c f + b_c + d_c        client k's prediction: norms by its own head

Backbone, w and b are averaged as in FedAvg; phi and d stay on the client and begin at zero, where the client
predicts as the federation. The network needs ``model.head = "realigned"`` and ``model.personal =
["head.personal.*"]``; the server measures z, clients measure z_k on their held-out images
(``evaluation.holdout``), and the finished model predicts with z.

The loss of the ETF's logits is the experiment's; in the authors' code (github.com/ZackZikaiXiao/FedLoGe) it
is cross-entropy. What differs from that code: equal norms are the rows' mean where it has 1.7, which changes
no order of the logits but for the biases; realignment is how the head predicts in every round, not a second
program on the last model; classes that a client lacks are left to its own head, where the code takes them out
of its predictions, and no number is minus infinity; the ETF's rows have norm 1, times ``scale``, and no bias,
where the code brings them to about 0.1 while it spreads the angles by 10,000 steps of Adam, and draws a bias
that stays; w begins as the ETF and b at 0, as rows that are drawn keep their noise for long, which equal
norms make larger.

A client keeps C (D + 1) numbers. A round sends what FedAvg's does, the ETF not included; a step costs two
further linear layers. As backbone and head are called one after the other, ``training.compile`` does not
quicken them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.second_heads import check_labels, head_of, plain_loss
from fedvision.inputs import Batch
from fedvision.models.base import halves
from fedvision.models.personalized_heads import RealignedHead
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import LossFn, State, TrainRequest

_NEEDED_BY = "[strategy] use = 'fedloge'"


class FedLoGeClient(ClientAlgorithm):
    """The task's loss of the fixed head, which trains the backbone, and the plain one of both others."""

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Look at the head.

        Raises:
            ConfigError: It has no fixed part, or the client's own part does not stay on the client.
        """
        self._client = request.client
        head_of(model, RealignedHead, "realigned", request, _NEEDED_BY)

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the sum of the three losses of each example [B].

        Raises:
            ClientError: The examples have not one label each.
        """
        network = halves(model, _NEEDED_BY)
        head = network.head
        assert isinstance(head, RealignedHead)
        features = network.backbone(x)
        fixed = head.fixed(features)
        check_labels(fixed, labels, self._client, "FedLoGe")
        still = features.detach()
        others = (head.generic(still), head.personal(still))
        return task_loss(fixed, labels) + sum(plain_loss(one, labels, task_loss) for one in others)


class FedLoGe(FedAvg):
    """FedAvg of a backbone that a fixed sparse ETF trains, and of a head whose rows predict with equal norms.

    Args:
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedLoGeClient
    trains_generic = True
