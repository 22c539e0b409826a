"""FedLF: FedAvg whose clients draw features to their classes' centres and keep them uncorrelated.

Lu, Li, Jiang 2024, "FedLF: Adaptive Logit Adjustment and Feature Optimization in Federated Long-Tailed
Learning", arXiv 2409.12105 (ACML 2024, PMLR 260). It has three parts, all on the clients. The first is a loss
of logits and counts and is here ``[loss] use = "fedlf"`` with ``prior = "local"``; the other two are about
features h = backbone(image) [D] and are this strategy's. Each client minimises its loss plus::

    centre * -log softmax(-d)_y     d_c = ||h - m_c||, d_y = ||h - m_y|| + g, g = min(max ||m_a - m_b||, 100)
    decorrelation * mean_{i != j} R_ij^2 / B       R = Z^T Z,  Z_bi = (h_bi - mean_i) / sqrt(var_i + 1e-8)

with m_c the mean of the features that the client's images of class c have in the model that the round begins
with, and mean and variance (divided by B - 1) over a batch of B images. The centre loss asks that an image is
nearer to its own class by the largest distance between two centres. The decorrelation is FedDecorr's (Shi et
al. 2023, arXiv 2210.00226) in the form of both papers' code, which grows with the batch: about B mean K_ij^2
of the correlations K. ``centre = 0`` leaves it alone.

The formulas are those of the authors' code (github.com/18sym/FedLF, ``algorithm/fedlf.py``), as are both
weights of 0.01 and the limit of 100. As there, a class without images at the client has its centre at the
origin, and is one of the classes from whose centre an image is pushed away. Different here: centres are
measured in evaluation mode on images as they are, there in training mode on augmented ones, which also moves
batch normalisation's statistics; a distance of 0 has a gradient of 0, where the code's square root has none;
a batch of one image, or features of a single number, have no correlation and no such term. With
``training.accumulate`` the correlations are those of a part.

The task's loss can be any of the package's; the paper's own is ``fedlf``. A round takes one further forward
pass over the client's images, nothing more is sent, and a client holds C D numbers more. As backbone and head
are called one after the other, ``training.compile`` does not quicken them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ClientError, ConfigError
from fedvision.inputs import Batch
from fedvision.losses.logits import cross_entropy_of
from fedvision.models.base import halves
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent
from fedvision.types import ClientConfig, LossFn, State, TrainRequest

_NEEDED_BY = "[strategy] use = 'fedlf'"
_MOST = 100.0
"""Largest margin of the centre loss, as in the authors' code."""


class FedLFClient(ClientAlgorithm):
    """The task's loss, the distance from the class centres and the correlation of features."""

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take note of both weights.

        Raises:
            ClientError: The request has no number ``centre`` or ``decorrelation``, or no counts.
            ConfigError: The network has no backbone, or trains nothing of it.
        """
        self._client = request.client
        numbers = numbers_sent(request, "FedLF", "centre", "decorrelation")
        self._centre, self._decorrelation = numbers["centre"], numbers["decorrelation"]
        if request.own_counts is None:
            raise ClientError(request.client, "training", "FedLF got no class counts of the client's images")
        self._classes = len(request.own_counts)
        if not any(p.requires_grad for p in halves(model, _NEEDED_BY).backbone.parameters()):
            raise ConfigError(
                f"{_NEEDED_BY} is about features, and nothing of the backbone is trained; use 'fedavg', or "
                "train more in [model]"
            )

    def survey(self, model: nn.Module, batches: Iterable[tuple[Batch, torch.Tensor]]) -> None:
        """Measure the centre of each class, where the centre loss is switched on."""
        if self._centre:
            backbone = halves(model, _NEEDED_BY).backbone
            found = ((backbone(x), self._labels(labels)) for x, labels in batches)
            self._centres = class_centres(found, self._classes)
            self._margin = largest_distance(self._centres).clamp(max=_MOST)

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the task's loss plus both terms of each example [B]; the decorrelation is the batch's.

        Raises:
            ClientError: The examples have not one label each.
        """
        network = halves(model, _NEEDED_BY)
        features = network.backbone(x)
        losses = task_loss(network.head(features), self._labels(labels))
        # Products of features in bfloat16 would leave two digits of a distance.
        with torch.autocast(features.device.type, enabled=False):
            if self._centre:
                losses = losses + self._centre * centre_loss(features, labels, self._centres, self._margin)
            if self._decorrelation:
                losses = losses + self._decorrelation * decorrelation(features)
        return losses

    def _labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Return labels if they are one an image.

        Raises:
            ClientError: They are not.
        """
        if labels.dim() != 1:
            raise ClientError(
                self._client,
                "training",
                "FedLF draws features to the centre of their class: it needs one label an image, not labels "
                f"{list(labels.shape)}",
            )
        return labels


class FedLF(FedAvg):
    """FedAvg with a centre loss and decorrelated features on the clients.

    Args:
        centre: Weight of the centre loss, >= 0; 0 switches it off.
        decorrelation: Weight of the squared correlations, >= 0; 0 switches it off. With both 0 it is
            FedAvg.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedLFClient

    def __init__(
        self,
        *,
        centre: float = 0.01,
        decorrelation: float = 0.01,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, centre=centre, decorrelation=decorrelation)
        self.centre, self.decorrelation = centre, decorrelation

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send both weights."""
        return ClientConfig(numbers={"centre": self.centre, "decorrelation": self.decorrelation})


def class_centres(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], num_classes: int) -> torch.Tensor:
    """Return the mean feature of each class, float32 [C, D]; zeros for a class without images.

    Args:
        batches: Features [B, ...] and labels int64 [B], at least one batch.
        num_classes: C.
    """
    sums = counts = torch.zeros(())
    for features, labels in batches:
        h = features.flatten(1).float()
        member = F.one_hot(labels, num_classes).to(h)
        # A product adds in a fixed order on a GPU, too, where index_add does not.
        with torch.autocast(h.device.type, enabled=False):
            sums, counts = sums.to(h) + member.T @ h, counts.to(h) + member.sum(0)
    return sums / counts.clamp(min=1)[:, None]


def largest_distance(centres: torch.Tensor) -> torch.Tensor:
    """Return the largest Euclidean distance between two of the centres [C, D], a single number."""
    return _squared_distances(centres, centres).max().clamp(min=0).sqrt()


def centre_loss(
    features: torch.Tensor, labels: torch.Tensor, centres: torch.Tensor, margin: torch.Tensor
) -> torch.Tensor:
    """Return ``-log softmax(-d)_y`` of each image [B], d the distances and d_y with the margin on top.

    Args:
        features: [B, ...].
        labels: int64 [B].
        centres: float32 [C, D].
        margin: g, a single number >= 0.
    """
    h = features.flatten(1).float()
    squares = _squared_distances(h, centres)
    # The root's slope at 0 is infinite, and rounding leaves less than 0.
    apart = squares > 0
    distances = torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
    return cross_entropy_of(-(distances + margin * F.one_hot(labels, len(centres))), labels)


def decorrelation(features: torch.Tensor) -> torch.Tensor:
    """Return ``mean_{i != j} (Z^T Z)_ij^2 / B`` of a batch's standardised features Z, one number.

    Args:
        features: [B, ...]; of one image, or of one number each, the result is 0.
    """
    h = features.flatten(1).float()
    size, width = h.shape
    if size < 2 or width < 2:
        return h.new_zeros(())
    z = h - h.mean(0)
    z = z / (h.var(0) + 1e-8).sqrt()
    products = (z.T @ z).square()
    return (products.sum() - products.diagonal().sum()) / (width * (width - 1) * size)


def _squared_distances(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return ||a - b||^2 of each row [B, D] and each other one [C, D] as [B, C], down to rounding."""
    with torch.autocast(rows.device.type, enabled=False):
        products = rows @ others.T
    return rows.square().sum(1, keepdim=True) + others.square().sum(1) - 2 * products
