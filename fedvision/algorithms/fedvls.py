"""FedVLS: FedAvg whose clients distil the classes they have no image of and suppress logits of wrong ones.

Guo et al. 2025, "Exploring Vacant Classes in Label-Skewed Federated Learning", arXiv 2401.02329. Each client
minimises its loss plus::

    vacant * KL(q_x || q)  +  suppression * sum_c p_c log mean_i 1(y_i != c) exp(z_ic)

with q = softmax of the logits z over the classes of which the client has no image (vacant ones), q_x that of
the model that the round began with (teacher), p_c the client's share of class c, and the mean over a batch.
The first term (equation 3, printed in the paper without its minus sign) keeps what the global model knows of
vacant classes. The second (equations 4 and 5) lowers the logits of the client's frequent classes where they
are wrong. A vacant class has p_c = 0 and no part in it.

The paper's own loss of the classes that are there is ``[loss] use = "logit-adjusted"`` with ``tau = 1`` and
``prior = "local"``; here any of the package's can be taken. The suppression has a weight of 1 in the paper
(equation 6) and of 0.005 in the authors' code (github.com/krumpguo/FedVLS), which is the default here: the
term has no lower bound, as all logits can fall together. The authors' code counts an image's own logit as 0
in the mean; here it is left out, as in equation 4. A class to which all images of a batch belong has no part
in that batch's suppression, and a client with fewer than two vacant classes has nothing to distil. With
``training.accumulate`` the mean is over the images of a part.

The teacher is in evaluation mode. Each step takes one further forward pass without gradients, and a client
holds the model twice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ClientError
from fedvision.inputs import Batch
from fedvision.losses.logits import is_label, precise
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent
from fedvision.types import ClientConfig, LossFn, State, TrainRequest


class FedVLSClient(ClientAlgorithm):
    """The task's loss, vacant-class distillation and logit suppression."""

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Find the vacant classes, and keep a copy of the model as the teacher.

        Raises:
            ClientError: The request has no number ``vacant`` or ``suppression``, or no counts.
        """
        self._client = request.client
        numbers = numbers_sent(request, "FedVLS", "vacant", "suppression")
        if request.own_counts is None:
            raise ClientError(request.client, "training", "FedVLS got no class counts of the client's images")
        self._weight, self._suppression = numbers["vacant"], numbers["suppression"]
        device = next(model.parameters()).device
        counts = torch.tensor(request.own_counts, dtype=torch.float32)
        self._vacant = torch.nonzero(counts == 0).flatten().to(device)
        self._shares = (counts / counts.sum().clamp(min=1)).to(device)
        # Of one class alone softmax is 1 whatever the logit: there is nothing to distil.
        distils = len(self._vacant) > 1 and self._weight > 0
        self._teacher = copy.deepcopy(model).eval().requires_grad_(False) if distils else None

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the task's loss plus both terms of each example [B]; the suppression is the batch's.

        Raises:
            ClientError: The examples have not one label each.
        """
        logits = model(x)
        if labels.dim() != 1 or logits.dim() != 2 or logits.shape[1] != len(self._shares):
            raise ClientError(
                self._client,
                "training",
                "FedVLS is about the classes that a client lacks: it needs one label an image, not logits "
                f"{list(logits.shape)} with labels {list(labels.shape)}",
            )
        losses = task_loss(logits, labels)
        if self._teacher is not None:
            with torch.no_grad():
                teacher = self._teacher(x)
            losses = losses + self._weight * vacant_divergence(logits, teacher, self._vacant)
        if self._suppression:
            losses = losses + self._suppression * suppression(logits, labels, self._shares)
        return losses


class FedVLS(FedAvg):
    """FedAvg with vacant-class distillation and logit suppression on the clients.

    Args:
        vacant: Weight of the distillation of vacant classes, >= 0; 0 switches it off.
        suppression: Weight of the suppression of wrong logits, >= 0; 0 switches it off. With both 0 it is
            FedAvg.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedVLSClient

    def __init__(
        self,
        *,
        vacant: float = 1.0,
        suppression: float = 0.005,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, vacant=vacant, suppression=suppression)
        self.vacant, self.suppression = vacant, suppression

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send both weights."""
        return ClientConfig(numbers={"vacant": self.vacant, "suppression": self.suppression})


def vacant_divergence(logits: torch.Tensor, teacher: torch.Tensor, vacant: torch.Tensor) -> torch.Tensor:
    """Return KL(teacher || student) of softmax over the vacant classes [B], in nats.

    Args:
        logits: The student's [B, C].
        teacher: The teacher's [B, C], without gradient.
        vacant: int64 [O], at least one class.
    """
    own, target = (precise(z)[:, vacant].log_softmax(dim=1) for z in (logits, teacher))
    weights = target.exp()
    return torch.where(weights > 0, weights * (target - own), 0.0).sum(dim=1)


def suppression(logits: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return ``sum_c p_c log mean_i 1(y_i != c) exp(z_ic)`` of a batch, one number.

    Args:
        logits: [B, C].
        labels: int64 [B].
        shares: p [C]; a class of share 0, or to which all images belong, has no part.
    """
    own = is_label(logits, labels)
    counted = (shares > 0) & ~own.all(dim=0)
    # A column of -inf alone has a gradient of NaN, which the fill stops.
    masked = precise(logits).masked_fill(own, -torch.inf)
    means = masked.logsumexp(dim=0) - math.log(len(logits))
    return torch.where(counted, shares * means, 0.0).sum()
