"""The local steps of K clients at once: the loop of ``fit``, with a dimension of clients before all others.

Torch's own optimisers, which work element by element, step on stacked parameters [K, ...] (see ``stack``).
So kernels are launched as often as for a single client, which is what small models wait for on a GPU; where
even that is too often, ``recorded`` plays the steps back. Batches, augmentation, losses, algorithms and
schedules are those of ``fit``, and so is the result but for the order of float32 sums. What cannot be stacked
is named by ``fedvision.training.vectorized.vmap_support``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedvision.data.shards import Shard
from fedvision.models.freezing import training_mode
from fedvision.models.state import floating
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.evaluate import Evaluation
from fedvision.training.loop import LoopSettings, has_batch_norm, positions, rate
from fedvision.training.vectorized.batch_schedule import BatchSchedule, stacks
from fedvision.training.vectorized.client_batch import (
    ClientBatch,
    ClientBatchResult,
    InitialTensors,
    backward,
    clip_each,
    gather_batch,
)
from fedvision.training.vectorized.cuda_graph import CudaGraphRunner
from fedvision.training.vectorized.device_cache import DeviceDatasetCache
from fedvision.training.vectorized.stacked_algorithms import StackedClientAlgorithm, first
from fedvision.types import LossFn, State, TrainRequest


def fit_many(
    model: nn.Module,
    shards: Sequence[Shard],
    requests: Sequence[TrainRequest],
    *,
    loss: Callable[[torch.Tensor], LossFn],
    counts: torch.Tensor,
    algorithms: Sequence[ClientAlgorithm],
    settings: LoopSettings,
    memories: Sequence[State] = (),
    personals: Sequence[State] = (),
    measured: Sequence[Evaluation | None] = (),
    chunk: int = 0,
    device_cache: DeviceDatasetCache | None = None,
    recorded: CudaGraphRunner | None = None,
) -> Iterator[tuple[list[int], ClientBatchResult]]:
    """Train a model on many clients' shards, each from its task's state, as ``fit`` would.

    Args:
        model: The network, on ``settings.device``, one that ``supports_vmap`` passes; its tensors stay.
        shards: Each client's training images, at least one; all images have one shape.
        requests: Each client's task, all of one round.
        loss: Class counts [K, C] of some clients -> ``loss(logits [K, B, C], labels [K, B]) -> [K, B]``.
        counts: Each client's class counts [K, C], on the device.
        algorithms: What the method adds, one object for each client, all of one class.
        settings: Optimiser, transforms, device, seed.
        memories: What the algorithm returned for each client before; empty where nobody keeps anything.
        personals: Each client's tensors that do not travel; what is left out is as in the model.
        measured: What each client counted before, to be handed on.
        chunk: Clients that are trained at once; 0 trains all at once.
        device_cache: Holds image sets on the device.
        recorded: Plays steps back, where it can.

    Yields:
        Places in ``requests`` and these clients after their training.

    Raises:
        ValueError: The tasks belong to several rounds.
        ConfigError: A task's state is not that of the model.
        ClientError: An algorithm lacks something.
    """
    if len({request.round for request in requests}) > 1:
        raise ValueError("the clients of a stack have one learning rate: give them tasks of one round")
    training_mode(model)
    norm, both = has_batch_norm(model), zip(shards, requests, strict=True)
    batches = [list(positions(len(shard), request, settings, norm)) for shard, request in both]
    for places in stacks(batches, chunk or len(requests)):
        own = [requests[i] for i in places]
        plan = BatchSchedule.make(
            [shards[i] for i in places], own, [batches[i] for i in places], settings, device_cache
        )
        who = ClientBatch(
            requests=own,
            start=InitialTensors.of(model, own, [personals[i] if personals else {} for i in places]),
            algorithms=[algorithms[i] for i in places],
            memories=[memories[i] if memories else {} for i in places],
            counts=counts[places],
            measured=[measured[i] if measured else None for i in places],
        )
        stacked = None if recorded is None else recorded.train(plan, who, loss)
        yield places, _Stack(model, who, settings).train(plan, loss) if stacked is None else stacked


class _Stack:
    """K clients' tensors [K, ...], the optimiser that moves them, and their algorithms."""

    def __init__(self, model: nn.Module, who: ClientBatch, settings: LoopSettings) -> None:
        self.model, self.who, self.settings = model, who, settings
        own, start, requests = floating(model), who.start, who.requests
        self.fixed = start.shared
        self.full = {name: _stacked(values, own[name]) for name, values in start.trained.items()}
        self.still = {name: _stacked(values, own[name]) for name, values in start.per_client.items()}
        self.parameters = {name: nn.Parameter(tensor) for name, tensor in self.full.items()}
        self.lr = settings.training.lr * settings.schedule(requests[0].round, settings.rounds)
        self.rates = [rate(request) for request in requests]
        shared = len(set(self.rates)) == 1
        self.lr, self.rates = (
            (self.lr * self.rates[0], [1.0] * len(requests)) if shared else (self.lr, self.rates)
        )
        self.scales = None if shared else torch.tensor(self.rates, device=settings.device)
        self.optimizer = settings.make_optimizer(list(self.parameters.values()), self.lr)
        self.algorithm = StackedClientAlgorithm(model, who.algorithms, self.full, requests, who.memories)

    def train(self, plan: BatchSchedule, loss: Callable[[torch.Tensor], LossFn]) -> ClientBatchResult:
        """Take all steps and close the round."""
        sums = torch.zeros(len(self.who.requests), device=self.settings.device)
        active, current = 0, None
        # The fused attention kernels have no batching rule, their plain form has.
        with sdpa_kernel(SDPBackend.MATH):
            for step in range(len(plan.active)):
                if current is None or plan.active[step] < active:
                    active = plan.active[step]
                    self._keep(active)
                    current = loss(self.who.counts[:active])
                sums[:active] += self._step(plan, step, current)
        return ClientBatchResult(
            model=self.model,
            who=self.who,
            plan=plan,
            tensors={**self.full, **self.still},
            shared=self.fixed,
            sums=sums,
            ends=self.algorithm.finish(plan.steps, [self.lr * own for own in self.rates]),
        )

    def _step(self, plan: BatchSchedule, step: int, loss: LossFn) -> torch.Tensor:
        """Move the active clients; return each one's sum of losses over the batch [K]."""
        slots, active = plan.slots(step), plan.active[step]
        batch = gather_batch(plan.images, plan.labels, slots, self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        tensors = {**self.parameters, **{name: tensor[:active] for name, tensor in self.still.items()}}
        sums = backward(self.model, tensors, self.fixed, batch, slots.weights, loss, self.settings)
        groups, numbers = self.algorithm.groups, self.algorithm.numbers
        rows = {name: number[:active] for name, number in numbers.items()}
        self.algorithm.after_backward(self.parameters, first(groups, active), rows)
        if self.settings.training.clip_norm:
            clip_each([p.grad for p in self.parameters.values()], self.settings.training.clip_norm)
        self._move()
        return sums

    @torch.no_grad()
    def _move(self) -> None:
        """Step; where clients have rates of their own, each goes its multiple of the common step.

        That is the step at its own rate: optimisers that ``scalable`` lets through move by the rate times
        what does not depend on it.
        """
        before = [p.clone() for p in self.parameters.values()] if self.scales is not None else []
        self.optimizer.step()
        for parameter, old in zip(self.parameters.values(), before, strict=False):
            assert self.scales is not None
            scales = self.scales[: len(old)].view(-1, *[1] * (old.dim() - 1))
            parameter.copy_(old + (parameter - old) * scales)

    def _keep(self, active: int) -> None:
        """Let all but the first ``active`` clients rest: the optimiser sees shorter views of the tensors."""
        for parameter in self.parameters.values():
            state = self.optimizer.state[parameter]
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[key] = value[:active]
            parameter.grad = None
            parameter.data = parameter.data[:active]


def _stacked(values: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy [K, ...] with the device and dtype of one client's tensor."""
    if all(value is values[0] for value in values):
        alone = values[0].detach().to(like)
        return alone.expand(len(values), *alone.shape).clone(memory_format=torch.contiguous_format)
    return torch.stack([value.detach().to(like) for value in values]).contiguous()
