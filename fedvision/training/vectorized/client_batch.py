"""Clients that are trained together: what they begin with, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from fedvision.data.shards import Shard
from fedvision.devices import widest_float
from fedvision.models.state import check_state, floating, personal_names
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.evaluate import Evaluation
from fedvision.training.loop import TrainResult
from fedvision.training.vectorized.batch_schedule import BatchSchedule
from fedvision.types import State, TrainRequest


@dataclass(frozen=True, kw_only=True)
class ClientJob:
    """What one client of a batch does."""

    request: TrainRequest
    """Its task."""
    shard: Shard
    """Its training images, at least one."""
    algorithm: ClientAlgorithm
    """What the method adds, an object of its own."""
    counts: torch.Tensor
    """The class counts [C] that its loss sees."""
    memory: State = field(default_factory=dict)
    """What the algorithm returned before."""
    personal: State = field(default_factory=dict)
    """Its tensors that do not travel; what is left out is as in the model."""
    residual: State = field(default_factory=dict)
    """What update transforms left out of its last update."""
    measured: Evaluation | None = None
    """What it counted of the state that it was sent, where requested."""


@dataclass(frozen=True, kw_only=True)
class ClientBatch:
    """K clients that are trained together: tasks of one round, algorithms of one class."""

    jobs: Sequence[ClientJob]
    """What each does."""
    counts: torch.Tensor
    """Class counts [K, C], on the device."""
    trained: dict[str, list[torch.Tensor]]
    """What the optimiser moves, as each client begins."""
    shared: State
    """What stays as it is, the same for all."""
    per_client: dict[str, list[torch.Tensor]]
    """What stays as it is, and is not the same for all."""

    @classmethod
    def of(cls, model: nn.Module, jobs: Sequence[ClientJob], device: torch.device) -> ClientBatch:
        """Sort the tensors of tasks, and those that are not shared.

        Raises:
            ConfigError: A task's state is not that of the model.
        """
        # Most often all were sent one model.
        for state in {tuple(map(id, job.request.state.values())): job.request.state for job in jobs}.values():
            check_state(model, state)
        moved = {name for name, p in model.named_parameters() if p.requires_grad}
        starts = [job.personal | job.request.state for job in jobs]
        counts = torch.stack([job.counts for job in jobs]).to(device)
        batch = cls(jobs=jobs, counts=counts, trained={}, shared={}, per_client={})
        for name, own in floating(model).items():
            values = [given.get(name, own) for given in starts]
            if name in moved:
                batch.trained[name] = values
            elif _same(values):
                batch.shared[name] = values[0].detach().to(own)
            else:
                batch.per_client[name] = values
        return batch


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

    @cached_property
    def requests(self) -> Sequence[TrainRequest]:
        """The clients' tasks."""
        return [job.request for job in self.who.jobs]

    @cached_property
    def at_home(self) -> tuple[str, ...]:
        """Names of the tensors that do not travel."""
        return personal_names(self.model, self.requests[0].state)

    @property
    def alone(self) -> bool:
        """Whether the models are all that clients send and keep."""
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
        wide = widest_float(self.sums.device)
        squares = torch.zeros(len(self.requests), dtype=wide, device=self.sums.device)
        # In their order: a set's would be another in each process, and the sum's last bits with it.
        for name, new in self.tensors.items():
            if name not in states:
                continue
            kind = torch.promote_types(new.dtype, torch.float32)
            change = new.to(kind) - states[name].to(new.device, kind)
            squares += torch.linalg.vector_norm(change.flatten(1), dim=1, dtype=wide).square()
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
            measured=self.who.jobs[k].measured,
        )


def _same(values: Sequence[torch.Tensor]) -> bool:
    return all(value is values[0] or torch.equal(value.to(values[0]), values[0]) for value in values)
