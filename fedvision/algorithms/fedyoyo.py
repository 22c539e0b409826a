"""FedYoYo: FedAvg whose clients distil what the model says of an image into a strongly augmented view of it.

Yan, Li, Wu, Pang, Lu, Yan, Wang 2025, "You Are Your Own Best Teacher: Achieving Centralized-level Performance
in Federated Learning under Heterogeneous and Long-tailed Data", arXiv 2503.06916. Each client minimises::

    (loss(z, y) + loss(z', y)) / 2  +  distillation min(t / warmup, 1) KL(p || p')    p = softmax(a(z) / tau)

in round t, with the logits z of an image as ``[transforms]`` augment it (weak view) and z' of a strong view
of the same image (``data.strong_view``), both of the model that is trained and in one batch. p is the teacher
and has no gradient; the divergence is the mean over those images of the batch whose weak view is classified
as labelled, and 0 where there is none. a(z) are the logits of which the loss takes the softmax: z + tau log p
for ``logit-adjusted``; z for losses that are no cross-entropy of other logits.

The paper's own loss, its distribution-aware logit adjustment, is ``[loss] use = "logit-adjusted"`` with
``prior = "mixed"`` and ``local_share = 0.1``; ``tau = 1.5`` there and here, ``warmup = 50`` and
``distillation = 1.5`` are the defaults of the authors' code (github.com/shanss132/FedYoYo), whose example
script sets the last to 4. Here any loss of the package can be taken. What differs from that code: its prior
of the federation is estimated from how much the features of a class differ, here it comes from counts; it
mixes the client's prior in anew at every batch, so that it drifts to the client's own, where here the share
stays what it is set to. Its strong view is AutoAugment's policy for CIFAR-10 or SVHN and a blanked square;
here it is made for images of any kind, on top of the weak view, with the same crop and flip. As there, and
unlike Hinton et al. 2015, there is no factor tau^2.

Each step passes two views through the network: twice the time and memory of FedAvg's; nothing more is sent. A
``strength`` of 0 makes both views one, which is FedAvg, and only one is passed. Mixup is refused, as its
images have two labels. What frozen layers make of images is not kept, as each view is another image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision.algorithms.distillation import kl_divergence
from fedvision.algorithms.fedavg import FedAvg
from fedvision.data.strong_view import strong_view
from fedvision.errors import ClientError, ConfigError
from fedvision.inputs import Batch, Inputs, images_of
from fedvision.losses.logits import adjusted
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent
from fedvision.types import ClientConfig, LossFn, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig


class FedYoYoClient(ClientAlgorithm):
    """The task's loss of two views of each image, and the divergence of the strong one from the weak one."""

    sees_images = True
    draws = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take note of the round's weight, the temperature and the strength.

        Raises:
            ClientError: The request lacks one of them.
        """
        self._client = request.client
        numbers = numbers_sent(request, "FedYoYo", "weight", "tau", "strength")
        self._weight, self._tau, self._strength = (numbers[name] for name in ("weight", "tau", "strength"))

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the mean loss of both views plus the divergence of each example [B].

        Raises:
            ClientError: The examples have not one label and one logit for each class.
        """
        if not self._strength:
            return task_loss(model(x), labels)
        strong = strong_view(images_of(x), self._strength, self.generator)
        logits = model(_both(x, strong))
        if labels.dim() != 1 or logits.dim() != 2:
            raise ClientError(
                self._client,
                "training",
                "FedYoYo distils what is classified as labelled: it needs one label an image, not logits "
                f"{list(logits.shape)} with labels {list(labels.shape)}",
            )
        weak, other = logits.chunk(2)
        losses = (task_loss(weak, labels) + task_loss(other, labels)) / 2
        if not self._weight:
            return losses
        teacher, student = (adjusted(task_loss, z) for z in (weak, other))
        return losses + self._weight * self_distillation(teacher, student, labels, self._tau)


class FedYoYo(FedAvg):
    """FedAvg with distillation from weakly to strongly augmented views of the clients' images.

    Args:
        distillation: Weight of the divergence, >= 0; 0 trains on both views without it.
        tau: Temperature of both views' predictions, > 0.
        warmup: Rounds over which the weight rises to its value, >= 1; 1 has it from the first round on.
        strength: How strongly the second view is augmented, 0 <= strength <= 1; 0 is FedAvg.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedYoYoClient

    def __init__(
        self,
        *,
        distillation: float = 1.5,
        tau: float = 1.5,
        warmup: int = 50,
        strength: float = 1.0,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, distillation=distillation)
        check_range(above=0, tau=tau)
        check_range(at_least=1, warmup=warmup)
        check_range(at_least=0, at_most=1, strength=strength)
        self.distillation, self.tau = distillation, tau
        self.warmup, self.strength = warmup, strength

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Refuse mixup.

        Raises:
            ConfigError: Images are blended.
        """
        if config.transforms.mixup:
            raise ConfigError(
                "[strategy] use = 'fedyoyo' distils images that are classified as labelled, and "
                "transforms.mixup gives images two labels; set it to 0"
            )

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send the round's weight, the temperature and the strength."""
        weight = self.distillation * min(round / self.warmup, 1.0)
        return ClientConfig(numbers={"weight": weight, "tau": self.tau, "strength": self.strength})


def self_distillation(
    teacher: torch.Tensor, student: torch.Tensor, labels: torch.Tensor, tau: float
) -> torch.Tensor:
    """Return terms [B] whose mean is that of KL(teacher || student) over the images that the teacher knows.

    Args:
        teacher: Logits of the weak views [B, C]; they get no gradient.
        student: Logits of the strong views [B, C].
        labels: int64 [B]; an image counts where it has the teacher's largest logit.
        tau: Temperature, > 0.
    """
    taught = teacher.detach()
    known = taught.argmax(1) == labels
    factor = len(labels) / known.sum().clamp(min=1)
    return torch.where(known, factor * kl_divergence(student, taught, tau), 0.0)


def _both(x: Batch, strong: torch.Tensor) -> Batch:
    """Return a batch of 2 B images: those of the batch, then another view of each."""
    images = torch.cat([images_of(x), strong])
    return Inputs(images, torch.cat([x.further, x.further])) if isinstance(x, Inputs) else images
