"""What methods with a second head share: which head they need, and its plain loss."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.errors import ClientError, ConfigError
from fedvision.losses.logits import precise, sharpness
from fedvision.models.base import halves
from fedvision.models.personalized_heads import PERSONAL, PersonalizedHead
from fedvision.training.blended_loss import instead
from fedvision.types import LossFn, TrainRequest

Head = TypeVar("Head", bound=PersonalizedHead)


def head_of(model: nn.Module, kind: type[Head], name: str, request: TrainRequest, needed_by: str) -> Head:
    """Return a network's head, where it is as a method needs it and has a part of the client's own.

    Args:
        model: The network.
        kind: The head's class.
        name: Of the head, as ``model.head`` has it.
        request: The client's task.
        needed_by: The method, for the error: ``"[strategy] use = 'fedrod'"``.

    Raises:
        ConfigError: The head is another one, or its own part is shared or frozen, or the rest is not shared.
    """
    head = halves(model, needed_by).head
    if type(head) is not kind:
        raise ConfigError(
            f"{needed_by} needs a head with a part of each client's own, and this network's is a "
            f"{type(head).__name__}; set model.head = {name!r} and model.personal = [{PERSONAL!r}]"
        )
    own = [f"head.personal.{name}" for name, _ in head.personal.named_parameters()]
    if any(name in request.state for name in own) or not all(
        p.requires_grad for p in head.personal.parameters()
    ):
        raise ConfigError(
            f"{needed_by} has each client train and keep {own[0]!r}; set model.personal = [{PERSONAL!r}], "
            "and leave it out of model.frozen"
        )
    if missing := [name for name in ("head.weight", "head.bias") if name not in request.state]:
        raise ConfigError(
            f"{needed_by} averages the head beside each client's own part, and {missing[0]!r} is not shared; "
            f"set model.personal = [{PERSONAL!r}] and leave the head out of model.frozen"
        )
    return head


def check_labels(logits: torch.Tensor, labels: torch.Tensor, client: int, method: str) -> None:
    """Refuse anything but one class an image.

    Raises:
        ClientError: The labels are not [B], or the logits not [B, C].
    """
    if labels.dim() != 1 or logits.dim() != 2:
        raise ClientError(
            client,
            "training",
            f"{method} has a plain cross-entropy of its own: it needs one label an image, not logits "
            f"{list(logits.shape)} with labels {list(labels.shape)}",
        )


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
    """Return ``-log softmax(s z)_y`` [B], s and mixup's blend being those of the task's loss.

    Args:
        logits: [B, C].
        labels: int64 [B].
        task_loss: The loss that the client half was given.
    """
    scale = sharpness(task_loss)

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scale * precise(z), y, reduction="none")

    return instead(task_loss, loss)(logits, labels)
