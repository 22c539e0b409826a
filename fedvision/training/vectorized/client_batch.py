"""What training K clients at once is made of, whether its steps are launched one by one or played back.

One forward pass under ``torch.func.vmap`` serves K models (a convolution becomes one grouped convolution, a
linear layer one batched product); the sum of all clients' losses has as its gradient each client's own, as no
client's loss depends on another's weights. The gradient is taken outside ``vmap``: 0.8 of the time of
``vmap(grad)`` on a CPU, and a parameter without gradient stays one without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.func import functional_call, vmap

from fedvision.models.state import check_state, floating, personal_names
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.evaluate import Evaluation
from fedvision.training.loop import LoopSettings, TrainResult
from fedvision.training.vectorized.batch_schedule import BatchSchedule, StepBatch
from fedvision.types import LossFn, State, TrainRequest


@dataclass(frozen=True, kw_only=True)
class InitialTensors:
    """What K clients begin with, by tensor; each list has a tensor for each client."""

    trained: dict[str, list[torch.Tensor]]
    """What the optimiser moves."""
    shared: dict[str, torch.Tensor]
    """What stays as it is, the same for all."""
    per_client: dict[str, list[torch.Tensor]]
    """What stays as it is, and is not the same for all."""

    @classmethod
    def of(
        cls, model: nn.Module, requests: Sequence[TrainRequest], personals: Sequence[State]
    ) -> InitialTensors:
        """Sort the tensors of tasks, and those that are not shared.

        Raises:
            ConfigError: A task's state is not that of the model.
        """
        # Most often all were sent one model.
        for state in {tuple(map(id, request.state.values())): request.state for request in requests}.values():
            check_state(model, state)
        moved = {name for name, p in model.named_parameters() if p.requires_grad}
        starts = [personal | request.state for personal, request in zip(personals, requests, strict=True)]
        start = cls(trained={}, shared={}, per_client={})
        for name, own in floating(model).items():
            values = [given.get(name, own) for given in starts]
            if name in moved:
                start.trained[name] = values
            elif _same(values):
                start.shared[name] = values[0].detach().to(own)
            else:
                start.per_client[name] = values
        return start


@dataclass(frozen=True, kw_only=True)
class ClientBatch:
    """Clients that are trained together; each list has an entry for each."""

    requests: Sequence[TrainRequest]
    """Their tasks, all of one round."""
    start: InitialTensors
    """What they begin with."""
    algorithms: Sequence[ClientAlgorithm]
    """What the method adds, all of one class."""
    memories: Sequence[State]
    """What each algorithm returned before."""
    counts: torch.Tensor
    """Class counts [K, C]."""
    measured: Sequence[Evaluation | None]
    """What each client counted of the state that it was sent, where it was asked to."""


def gather_batch(
    images: torch.Tensor, labels: torch.Tensor, slots: StepBatch, settings: LoopSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a step's images [K, B, channels, H, W], normalised and augmented, and labels [K, B].

    Args:
        images: uint8 [N, H, W, channels].
        labels: int64 [N] or uint8 [N, L].
        slots: Which of them.
        settings: Transforms of the run.
    """
    flat = slots.at.flatten()
    x = settings.transform.normalise(images[flat], channels_last=settings.training.channels_last)
    x = settings.transform.apply(x, {name: value.flatten(-2) for name, value in slots.drawn.items()})
    return x.view(*slots.at.shape, *x.shape[1:]), labels[flat].view(*slots.at.shape, *labels.shape[1:])


def backward(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    shared: Mapping[str, torch.Tensor],
    batch: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    loss: LossFn,
    settings: LoopSettings,
) -> torch.Tensor:
    """Give each client's trained tensors their gradients; return each client's sum of losses [K].

    Args:
        model: The network.
        tensors: Those that clients have of their own, [K, ...].
        shared: The others.
        batch: Images [K, B, channels, H, W] and labels [K, B].
        weights: float32 [K, B]: what each loss counts.
        loss: Per example, logits [K, B, C] and labels [K, B] -> [K, B].
        settings: Precision and device of the run.
    """

    def logits(own: State, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(model, {**shared, **own}, (images,))
        return found

    x, labels = batch
    with settings.forward.autocast():
        losses = loss(vmap(logits)(dict(tensors), x), labels)
    losses = losses.masked_fill(weights == 0, 0)
    (losses * weights).sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach().sum(1)


@dataclass(frozen=True, kw_only=True)
class ClientBatchResult:
    """K clients after their training, on the device; good until the next stack is trained."""

    model: nn.Module
    """The network."""
    who: ClientBatch
    """The clients."""
    plan: BatchSchedule
    """What they did."""
    tensors: State
    """Those that clients have of their own, [K, ...]."""
    shared: State
    """The others."""
    sums: torch.Tensor
    """Each client's sum of losses [K]."""
    ends: Sequence[tuple[dict[str, State], State]]
    """What each client's algorithm returned."""

    @cached_property
    def losses(self) -> list[float]:
        """Each client's mean loss over the images it saw [K]."""
        return [total / seen for total, seen in zip(self.sums.tolist(), self.plan.examples, strict=True)]

    @property
    def requests(self) -> Sequence[TrainRequest]:
        """The clients' tasks."""
        return self.who.requests

    @cached_property
    def at_home(self) -> tuple[str, ...]:
        """Names of the tensors that do not travel."""
        return personal_names(self.model, self.requests[0].state)

    @property
    def alone(self) -> bool:
        """Whether the models are all that clients have to tell and to keep."""
        return not self.at_home and not any(any(end) for end in self.ends)

    def sent(self, client: int) -> State:
        """Return the tensors that travel of one client by its place, as views."""
        own = {**self.tensors, **self.shared}
        return {
            name: own[name][client] if name in self.tensors else own[name]
            for name in self.requests[client].state
        }

    def norms(self, states: State) -> list[float]:
        """Return the norm of the change that each client [K] makes to a model; not finite where it is not.

        Args:
            states: The model that all were sent.
        """
        squares = torch.zeros(len(self.requests), dtype=torch.float64, device=self.sums.device)
        for name in self.tensors.keys() & states.keys():
            new = self.tensors[name]
            kind = torch.promote_types(new.dtype, torch.float32)
            change = new.to(kind) - states[name].to(new.device, kind)
            squares += torch.linalg.vector_norm(change.flatten(1), dim=1, dtype=torch.float64).square()
        norms: list[float] = squares.sqrt().tolist()
        return norms

    def split(self) -> list[TrainResult]:
        """Return each client's update, on the CPU."""
        tensors = {name: tensor.cpu() for name, tensor in self.tensors.items()}
        fixed = {name: tensor.cpu() for name, tensor in self.shared.items()}
        return [self._update(k, tensors, fixed) for k in range(len(self.requests))]

    def _update(self, k: int, tensors: State, fixed: State) -> TrainResult:
        # Copies: a slice would keep the whole stack in memory, and share it with the other clients.
        own = {name: tensor[k] for name, tensor in tensors.items()} | fixed
        copies = {name: own[name].clone(memory_format=torch.contiguous_format) for name in own}
        groups, memory = self.ends[k]
        return TrainResult(
            state={name: copies[name] for name in self.requests[k].state},
            examples=self.plan.sizes[k],
            loss=self.losses[k],
            steps=self.plan.steps[k],
            tensors=groups,
            memory=memory,
            personal={name: copies[name] for name in self.at_home},
            measured=self.who.measured[k],
        )


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


def _same(values: Sequence[torch.Tensor]) -> bool:
    return all(value is values[0] or torch.equal(value.to(values[0]), values[0]) for value in values)
