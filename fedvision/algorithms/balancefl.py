"""BalanceFL: clients balance the classes that they have, and inherit from the global model those they lack.

Shuai, Shen, Jiang, Zhao, Yan, Xing 2022, "BalanceFL: Addressing Class Imbalance in Long-Tail Federated
Learning", IPSN 2022. A client's classes are those of which it has images; the others are vacant. Each client
minimises::

    loss(z')  +  vacant * KL(q_x || q)  -  entropy * H(p)

=========  ============================================================================================
z'         logits of features to which noise is added with a chance of 1 - n_kc / max_c n_kc, so mostly to
           those of the client's rare classes: normal, with the covariance of features within a class; the
           logits of vacant classes have no part in the loss, and so are not pushed down (feature-level
           augmentation)
q, q_x     softmax of z / tau and of the global model's z_x / tau over the vacant classes (knowledge
           inheritance)
H(p)       entropy of p, softmax of z over the client's classes, without noise (smooth regularisation)
=========  ============================================================================================

Its fourth part, drawing a client's classes equally often, is ``training.sampler = "balanced"``; a notice says
so where it is another. ``loss`` is the experiment's; the paper's is cross-entropy.

What differs from the authors' code (github.com/sxontheway/BalanceFL): its classes of a client are those of
the batch, here those of all its images; it adds 0.002 times the sum of a batch's entropies, which is 0.128 of
the mean at its 64 images, the default here; it measures the covariance of the features, by the global model,
in a pass over all images before training, while here it is that of the last 512 images that were seen in the
round, each beside the mean of its class so far, which takes no further pass; its global model is in training
mode, here in evaluation. KL has the gradient of the cross-entropy to q_x there. A client that lacks fewer
than two classes inherits nothing, and one with equal counts adds no noise; with all classes, ``augment = 0``
and ``entropy = 0`` it is FedAvg.

Each step takes one further forward pass without gradients where there is something to inherit or noise to
add, and the head's once more. A client holds the model twice and 512 D numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedvls import vacant_divergence
from fedvision.errors import ClientError
from fedvision.inputs import Batch
from fedvision.losses.logits import precise
from fedvision.models.base import halves
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent
from fedvision.types import ClientConfig, LossFn, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_NEEDED_BY = "[strategy] use = 'balancefl'"
_NUMBERS = ("vacant", "tau", "augment", "entropy")
_ABSENT = -1e4
"""Logit of a vacant class in the task's loss: finite, and exp of it is 0 beside any other's."""
_KEPT = 512
"""Images whose features make the noise."""


class FeatureNoise:
    """Normal noise with the covariance of features within a class, as seen so far.

    With the deviations d_i of n images from the means of their classes, a draw is
    ``sum_i e_i d_i / sqrt(n)``, e_i standard normal: its covariance is ``sum_i d_i d_i^T / n``, and no
    matrix [D, D] is made.

    Args:
        classes: C.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._sums: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None
        self._deviations: torch.Tensor | None = None

    def see(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Take features [B, D] without gradient and their labels [B]."""
        if self._sums is None or self._counts is None or self._deviations is None:
            self._sums = features.new_zeros(self._classes, features.shape[1])
            self._counts = features.new_zeros(self._classes)
            self._deviations = features[:0]
        self._sums.index_add_(0, labels, features)
        self._counts += torch.bincount(labels, minlength=self._classes)
        means = self._sums[labels] / self._counts[labels].unsqueeze(1)
        self._deviations = torch.cat([self._deviations, features - means])[-_KEPT:]

    def draw(self, count: int) -> torch.Tensor:
        """Return draws [count, D] from torch's global generator; ``see`` came before."""
        assert self._deviations is not None
        images = len(self._deviations)
        normal = torch.randn(count, images, device=self._deviations.device, dtype=self._deviations.dtype)
        drawn: torch.Tensor = normal @ self._deviations / math.sqrt(images)
        return drawn


class BalanceFLClient(ClientAlgorithm):
    """The task's loss over the client's classes on augmented features, inheritance and entropy."""

    sees_images = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Find the client's classes, and keep a copy of the model as the one to inherit from.

        Raises:
            ClientError: The request lacks a number, or the client's counts.
            ConfigError: The network has no backbone and head.
        """
        self._client = request.client
        self._numbers = numbers_sent(request, "BalanceFL", *_NUMBERS)
        if request.own_counts is None:
            raise ClientError(
                request.client, "training", "BalanceFL got no class counts of the client's images"
            )
        halves(model, _NEEDED_BY)
        device = next(model.parameters()).device
        counts = torch.tensor(request.own_counts, dtype=torch.float32)
        self._absent = (counts == 0).to(device)
        self._vacant = torch.nonzero(counts == 0).flatten().to(device)
        self._chance = (1 - counts / counts.max().clamp(min=1)).to(device)
        self._inherits = len(self._vacant) > 1 and self._numbers["vacant"] > 0
        # Of classes with equal counts none is rare; vacant ones have no features.
        rare = bool((self._chance[~self._absent] > 0).any())
        self._noise = FeatureNoise(len(counts)) if rare and self._numbers["augment"] > 0 else None
        kept = self._inherits or self._noise is not None
        self._global = copy.deepcopy(model).eval().requires_grad_(False) if kept else None

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the loss of each example [B].

        Raises:
            ClientError: The examples have not one label and one row of features each.
        """
        network = halves(model, _NEEDED_BY)
        features = network.backbone(x)
        logits = network.head(features)
        shapes = (labels.dim(), features.dim(), logits.dim(), logits.shape[-1])
        if shapes != (1, 2, 2, len(self._absent)):
            raise ClientError(
                self._client,
                "training",
                "BalanceFL is about the classes that a client lacks: it needs one label and a row of "
                f"features an image, not labels {list(labels.shape)} with features {list(features.shape)} "
                f"and logits {list(logits.shape)}",
            )
        wanted = self._view(x, labels)
        augmented = logits if self._noise is None else network.head(self._augmented(features, labels))
        losses = task_loss(present_logits(augmented, self._absent), labels)
        if wanted is not None and self._inherits:
            tau = self._numbers["tau"]
            divergence = vacant_divergence(precise(logits) / tau, precise(wanted) / tau, self._vacant)
            losses = losses + self._numbers["vacant"] * divergence
        if self._numbers["entropy"]:
            losses = losses - self._numbers["entropy"] * entropy(present_logits(logits, self._absent))
        return losses

    @torch.no_grad()
    def _view(self, x: Batch, labels: torch.Tensor) -> torch.Tensor | None:
        """Return the global model's logits [B, C], its features taken note of; None where none are needed."""
        if self._global is None:
            return None
        network = halves(self._global, _NEEDED_BY)
        features = network.backbone(x)
        if self._noise is not None:
            self._noise.see(features.float(), labels)
        wanted: torch.Tensor = network.head(features)
        return wanted

    def _augmented(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return features [B, D], to those of rare classes noise is added more often."""
        assert self._noise is not None
        noise = self._noise.draw(len(labels)) * self._numbers["augment"]
        chosen = torch.rand(len(labels), device=labels.device) < self._chance[labels]
        return features + torch.where(chosen.unsqueeze(1), noise, 0.0).to(features.dtype)


class BalanceFL(FedAvg):
    """FedAvg whose clients augment the features of rare classes and inherit the classes that they lack.

    Args:
        vacant: Weight of the inheritance of vacant classes, >= 0; 0 switches it off.
        tau: Temperature of the inheritance, > 0.
        augment: Size of the noise as a multiple of the features' own spread, >= 0; 0 switches it off.
        entropy: Weight of the entropy of the predictions, >= 0; 0 switches it off.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = BalanceFLClient

    def __init__(
        self,
        *,
        vacant: float = 1.0,
        tau: float = 2.0,
        augment: float = 1.0,
        entropy: float = 0.128,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, vacant=vacant, augment=augment, entropy=entropy)
        check_range(above=0, tau=tau)
        self.vacant, self.tau, self.augment, self.entropy = vacant, tau, augment, entropy

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send the four numbers."""
        return ClientConfig(numbers={name: getattr(self, name) for name in _NUMBERS})

    def notices(self, config: ExperimentConfig) -> Sequence[str]:
        """Say what the paper's sampler is where the experiment's is the plain one."""
        if config.training.sampler.use != "shuffle":
            return ()
        return (
            f"{_NEEDED_BY} is the paper's with classes drawn equally often, and training.sampler takes each "
            'image once; set training.sampler = "balanced"',
        )


def present_logits(logits: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """Return logits [B, C], those of absent classes (bool [C]) out of any softmax and without gradient."""
    return precise(logits).masked_fill(absent, _ABSENT)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy [B] of softmax(z) of logits [B, C], in nats."""
    z = precise(logits).log_softmax(dim=1)
    return -(z.exp() * z).sum(dim=1)
