"""K clients that take an optimiser step at once, whether their steps are launched one by one or played back.

One forward pass under ``torch.func.vmap`` serves K models (a convolution becomes one grouped convolution, a
linear layer one batched product); the sum of all clients' losses has as its gradient each client's own, as no
client's loss depends on another's weights. The gradient is taken outside ``vmap``: 0.8 of the time of
``vmap(grad)`` on a CPU, and a parameter without gradient stays one without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedvision.training.client_algorithm import ClientAlgorithm, along, finished
from fedvision.training.loop import LoopSettings
from fedvision.training.vectorized.batch_schedule import StepBatch
from fedvision.training.vectorized.client_batch import ClientBatch
from fedvision.types import LossFn, State


class StackedClientAlgorithm:
    """K clients' algorithms of one class, begun.

    Args:
        model: The network; its values are nobody's.
        tensors: The clients' trained tensors [K, ...], holding what they begin with.
        who: The clients.

    Raises:
        ClientError: An algorithm lacks something.
    """

    def __init__(self, model: nn.Module, tensors: State, who: ClientBatch) -> None:
        self.algorithms = [job.algorithm for job in who.jobs]
        self.names: tuple[str, ...] = ()
        """The parameters that take part."""
        self.groups: dict[str, State] = {}
        """The algorithms' groups, each tensor [K, ...]."""
        self.numbers: State = {}
        """The algorithms' numbers, each [K]."""
        if type(self.algorithms[0]) is ClientAlgorithm:
            return
        for k, job in enumerate(who.jobs):
            own = {name: nn.Parameter(tensor[k]) for name, tensor in tensors.items()}
            job.algorithm.begin(model, own, job.request, job.memory)
        first = self.algorithms[0]
        self.names = tuple(first.parameters)
        self.groups = {
            group: {name: torch.stack([o.groups[group][name] for o in self.algorithms]) for name in state}
            for group, state in first.groups.items()
        }
        device = next(iter(tensors.values())).device
        self.numbers = {
            name: torch.tensor([float(o.numbers[name]) for o in self.algorithms]).to(device)
            for name in first.numbers
        }
        for k, algorithm in enumerate(self.algorithms):
            algorithm.groups = {
                group: {name: tensor[k] for name, tensor in state.items()}
                for group, state in self.groups.items()
            }

    def finish(self, steps: Sequence[int], lrs: Sequence[float]) -> list[tuple[dict[str, State], State]]:
        """Return what each algorithm returns at the end of the round."""
        return [finished(o, count, lr) for o, count, lr in zip(self.algorithms, steps, lrs, strict=True)]


@dataclass(kw_only=True)
class ClientStack:
    """The first K clients of a batch, as far as a step reads and writes them."""

    model: nn.Module
    """The network; its values are nobody's."""
    settings: LoopSettings
    """Transforms, precision and device of the run."""
    parameters: dict[str, nn.Parameter]
    """The clients' trained tensors [K, ...]."""
    own: State
    """The clients' tensors that stay as they are [K, ...]."""
    shared: State
    """The tensors that are the same for all."""
    algorithm: StackedClientAlgorithm
    """What the method adds."""
    groups: dict[str, State]
    """The algorithms' groups [K, ...]: the algorithm's own, or kept elsewhere."""
    numbers: State
    """The algorithms' numbers [K]."""
    optimizer: torch.optim.Optimizer
    """Moves the parameters."""
    scales: torch.Tensor | None
    """[K]: by which multiple of the optimiser's step a client moves; None where all take the step itself."""

    def narrow(self, clients: int) -> None:
        """Let all but the first clients rest: the optimiser sees shorter views of the tensors."""
        for parameter in self.parameters.values():
            state = self.optimizer.state[parameter]
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[key] = value[:clients]
            parameter.grad = None
            parameter.data = parameter.data[:clients]
        self.own, self.numbers = rows(self.own, clients), rows(self.numbers, clients)
        self.groups = {group: rows(state, clients) for group, state in self.groups.items()}
        self.scales = None if self.scales is None else self.scales[:clients]

    def step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        slots: StepBatch,
        loss: LossFn,
        live: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Move the clients by nothing but operations on the device.

        Args:
            images: uint8 [N, H, W, channels].
            labels: int64 [N] or uint8 [N, L].
            slots: Which of them.
            loss: Per example, logits [K, B, C] and labels [K, B] -> [K, B].
            live: bool [K]: whether a client moves; None moves all.

        Returns:
            Each client's sum of losses over its batch [K].
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums = self._backward(*gather_batch(images, labels, slots, self.settings), slots.weights, loss)
        with torch.no_grad():
            with _only(live, [tensor for state in self.groups.values() for tensor in state.values()]):
                part = {name: self.parameters[name] for name in self.algorithm.names}
                self.algorithm.algorithms[0].correct_gradients(part, self.groups, self.numbers)
            if limit := self.settings.training.clip_norm:
                clip_each([p.grad for p in self.parameters.values()], limit)
            self._move(live)
        return sums

    def _backward(
        self, x: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, loss: LossFn
    ) -> torch.Tensor:
        def outputs(own: State, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = functional_call(self.model, {**self.shared, **own}, (images,))
            return found

        # The fused attention kernels have no batching rule, their plain form has.
        with sdpa_kernel(SDPBackend.MATH):
            with self.settings.forward.autocast():
                losses = loss(vmap(outputs)({**self.parameters, **self.own}, x), targets)
            losses = losses.masked_fill(weights == 0, 0)
            (losses * weights).sum().backward()  # type: ignore[no-untyped-call]
        return losses.detach().sum(1)

    def _move(self, live: torch.Tensor | None) -> None:
        """Step; where clients have rates of their own, each goes its multiple of the common step.

        That is the step at its own rate: optimisers that ``scalable`` lets through move by the rate times
        what does not depend on it.
        """
        moved, scales = list(self.parameters.values()), self.scales
        before = [] if scales is None else [p.clone() for p in moved]
        self.optimizer.step()
        if scales is None:
            return
        for p, old in zip(moved, before, strict=True):
            new = old + (p - old) * along(scales, p)
            p.copy_(new if live is None else torch.where(along(live, p), new, old))


def gather_batch(
    images: torch.Tensor, labels: torch.Tensor, slots: StepBatch, settings: LoopSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a step's images [K, B, channels, H, W], augmented, and its targets [K, B, ...].

    Args:
        images: uint8 [N, H, W, channels].
        labels: Targets [N, ...].
        slots: Which of them.
        settings: Task and transforms of the run.
    """
    flat = slots.at.flatten()
    x = settings.transform.inputs(images[flat], channels_last=settings.training.channels_last)
    drawn = {name: value.flatten(-2) for name, value in slots.drawn.items()}
    x, targets = settings.task.transform(x, labels[flat], drawn, settings.transform)
    return x.view(*slots.at.shape, *x.shape[1:]), targets.view(*slots.at.shape, *targets.shape[1:])


@torch.no_grad()
def clip_each(gradients: Sequence[torch.Tensor | None], limit: float) -> None:
    """Scale each client's gradients [K, ...] in place so that their joint norm is at most ``limit``.

    What ``torch.nn.utils.clip_grad_norm_`` does for one client (Pascanu et al. 2013, arXiv 1211.5063).
    """
    present = [gradient for gradient in gradients if gradient is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in present])
    factors = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in present:
        gradient.mul_(along(factors, gradient))


@contextmanager
def _only(live: torch.Tensor | None, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Undo what the block does to the tensors [K, ...] of clients that are not live."""
    before = [] if live is None else [tensor.clone() for tensor in tensors]
    yield
    if live is not None:
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(along(live, tensor), tensor, old))


def rows(state: Mapping[str, torch.Tensor], clients: int) -> State:
    """Return the tensors [K, ...] of the first clients, as views."""
    return {name: tensor[:clients] for name, tensor in state.items()}


@torch.no_grad()
def fill(target: torch.Tensor, values: Sequence[torch.Tensor]) -> None:
    """Write each client's tensor [...] into its row of ``target`` [K, ...]."""
    if all(value is values[0] for value in values):
        # Most often all were sent one model, which crosses over to a device once.
        target.copy_(values[0].to(target.device))
    else:
        target.copy_(torch.stack([value.to(target.device) for value in values]))
