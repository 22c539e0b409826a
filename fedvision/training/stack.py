"""What training K clients at once is made of, whether its steps are launched one by one or played back.

One forward pass under ``torch.func.vmap`` serves K models (a convolution becomes one grouped convolution, a
linear layer one batched product); the sum of all clients' losses has as its gradient each client's own, as no
client's loss depends on another's weights. The gradient is taken outside ``vmap``: 0.8 of the time of
``vmap(grad)`` on a CPU, and a parameter without gradient stays one without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, vmap

from fedvision.models.state import check_state, floating, kept
from fedvision.training.loop import LocalUpdate, LoopSettings, autocast
from fedvision.training.plan import Plan, Slots
from fedvision.types import LossFn, State, Task


@dataclass(frozen=True, kw_only=True)
class Start:
    """What K clients begin with, by tensor; each list has a tensor for each client."""

    trained: dict[str, list[torch.Tensor]]
    """What the optimiser moves."""
    alike: dict[str, torch.Tensor]
    """What stays as it is, the same for all."""
    unlike: dict[str, list[torch.Tensor]]
    """What stays as it is, and is not the same for all."""

    @classmethod
    def of(cls, model: nn.Module, tasks: Sequence[Task], personals: Sequence[State]) -> Start:
        """Sort the tensors of tasks, and those that stay at home.

        Raises:
            ConfigError: A task's state is not that of the model.
        """
        for task in tasks:
            check_state(model, task.state)
        moved = {name for name, p in model.named_parameters() if p.requires_grad}
        starts = [personal | task.state for personal, task in zip(personals, tasks, strict=True)]
        start = cls(trained={}, alike={}, unlike={})
        for name, own in floating(model).items():
            values = [given.get(name, own) for given in starts]
            if name in moved:
                start.trained[name] = values
            elif _same(values):
                start.alike[name] = values[0].detach().to(own)
            else:
                start.unlike[name] = values
        return start


def look_up(
    images: torch.Tensor, labels: torch.Tensor, slots: Slots, settings: LoopSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a step's images [K, B, channels, H, W], normalised and augmented, and labels [K, B].

    Args:
        images: uint8 [N, H, W, channels].
        labels: int64 [N].
        slots: Which of them.
        settings: Transforms of the run.
    """
    flat = slots.at.flatten()
    x = settings.transform.normalise(images[flat], channels_last=settings.training.channels_last)
    x = settings.transform.apply(x, {name: value.flatten(-2) for name, value in slots.drawn.items()})
    return x.view(*slots.at.shape, *x.shape[1:]), labels[flat].view(slots.at.shape)


def backward(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    alike: Mapping[str, torch.Tensor],
    batch: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    loss: LossFn,
    settings: LoopSettings,
) -> torch.Tensor:
    """Give each client's trained tensors their gradients; return each client's sum of losses [K].

    Args:
        model: The network.
        tensors: Those that clients have of their own, [K, ...].
        alike: The others.
        batch: Images [K, B, channels, H, W] and labels [K, B].
        weights: float32 [K, B]: what each loss counts.
        loss: Per example, logits [K, B, C] and labels [K, B] -> [K, B].
        settings: Precision and device of the run.
    """

    def logits(own: State, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(model, {**alike, **own}, (images,))
        return found

    x, labels = batch
    with autocast(settings.training, settings.device):
        losses = loss(vmap(logits)(dict(tensors), x), labels)
    losses = losses.masked_fill(weights == 0, 0)
    (losses * weights).sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach().sum(1)


@torch.no_grad()
def clip_each(gradients: Sequence[torch.Tensor | None], limit: float) -> None:
    """Scale each client's gradients [K, ...] in place so that their joint norm is at most ``limit``.

    What ``torch.nn.utils.clip_grad_norm_`` does for one client (Pascanu et al. 2013, arXiv 1211.5063).
    """
    present = [gradient for gradient in gradients if gradient is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in present])
    factors = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in present:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def updates(
    model: nn.Module,
    tasks: Sequence[Task],
    plan: Plan,
    tensors: State,
    alike: State,
    sums: torch.Tensor,
    ends: Sequence[tuple[dict[str, State], State]],
) -> list[LocalUpdate]:
    """Return each client's tensors and facts, on the CPU.

    Args:
        model: The network.
        tasks: The clients' tasks.
        plan: What they did.
        tensors: Those that clients have of their own, [K, ...]; they are copied.
        alike: The others.
        sums: Each client's sum of losses [K].
        ends: What each client's objective returned.
    """
    stacked = {name: tensor.cpu() for name, tensor in tensors.items()}
    fixed = {name: tensor.cpu() for name, tensor in alike.items()}
    at_home = kept(model, tasks[0].state)
    found = []
    for k, (task, total, (groups, memory)) in enumerate(zip(tasks, sums.tolist(), ends, strict=True)):
        # Copies: a slice would keep the whole stack in memory, and share it with the other clients.
        own = {name: tensor[k] for name, tensor in stacked.items()} | fixed
        copies = {name: own[name].clone(memory_format=torch.contiguous_format) for name in own}
        found.append(
            LocalUpdate(
                state={name: copies[name] for name in task.state},
                examples=plan.sizes[k],
                loss=total / plan.examples[k],
                steps=plan.steps[k],
                tensors=groups,
                memory=memory,
                personal={name: copies[name] for name in at_home},
            )
        )
    return found


def _same(values: Sequence[torch.Tensor]) -> bool:
    return all(value is values[0] or torch.equal(value.to(values[0]), values[0]) for value in values)
