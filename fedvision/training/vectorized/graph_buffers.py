"""The tensors of a stack at fixed addresses, and the recordings of its step.

Everything that a step reads and writes is here: the clients' tensors, the plan, and the number of the step,
which the step itself counts up. A recording serves the first K clients, and there is one for K, K/2, K/4 and
so on: a client that has no images left in a step is not moved by it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedvision.models.state import floating
from fedvision.training.client_algorithm import along
from fedvision.training.loop import LoopSettings
from fedvision.training.vectorized.batch_schedule import BatchSchedule, StepBatch
from fedvision.training.vectorized.client_batch import (
    ClientBatch,
    ClientBatchResult,
    backward,
    clip_each,
    gather_batch,
)
from fedvision.training.vectorized.stacked_algorithms import StackedClientAlgorithm, first
from fedvision.types import LossFn, State

Replay: TypeAlias = Callable[[], None]
GraphCapture: TypeAlias = Callable[[Replay], Replay]
"""``record(step)`` returns what repeats the operations of a step; it may also have taken the step."""
_TOLERANCE = 1e-3
"""By how much, of the largest number, a recording may differ from what it recorded: sums in another order."""


class GraphBuffers:
    """The tensors of K clients and S steps at their addresses, and the recordings of the step.

    Args:
        model: The network.
        settings: Optimiser, transforms, precision, device.
        plan: Says how many clients, steps and images a batch there are at most.
        who: Clients of the kind that it serves.
        key: What the recordings depend on beside what is in the tensors.
    """

    def __init__(
        self, model: nn.Module, settings: LoopSettings, plan: BatchSchedule, who: ClientBatch, key: Hashable
    ) -> None:
        self._model, self._settings, self._key = model, settings, key
        self._resident = plan.resident
        self._images, self._labels = (
            t if plan.resident else t.new_zeros((2 * len(t), *t.shape[1:]))
            for t in (plan.images, plan.labels)
        )
        steps, clients, width = plan.at.shape
        # Room for some more steps: another round has other clients.
        room = (2 * steps, clients, max(width, settings.training.batch_size))
        self._at, self._weights = plan.at.new_zeros(room), plan.weights.new_zeros(room)
        self._drawn = {
            name: value.new_zeros((*value.shape[:-3], *room)) for name, value in plan.drawn.items()
        }
        self._counts = who.counts.clone()
        self._rates = plan.weights.new_zeros(clients)
        self.sums = plan.weights.new_zeros(clients)
        self._step = torch.zeros(1, dtype=torch.int64, device=settings.device)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self.tensors: State = {}
        self._alike: State = {}
        for name, own in floating(model).items():
            whole = own.detach().expand(clients, *own.shape) if name in trained else own.detach()
            copy = whole.clone(memory_format=torch.contiguous_format) if name in trained else whole.clone()
            (self.tensors if name in trained else self._alike)[name] = copy
        self._momenta = {
            name: torch.zeros_like(tensor)
            for name, tensor in self.tensors.items()
            if settings.training.momentum
        }
        self._played: dict[int, Replay] = {}
        self._groups: dict[str, State] = {}
        self._numbers: State = {}

    def holds(self, plan: BatchSchedule, key: Hashable) -> bool:
        """Say whether a plan fits in, and the recordings serve it."""
        fits = all(own <= room for own, room in zip(plan.at.shape, self._at.shape, strict=True))
        there = plan.images is self._images if self._resident else self._takes(plan)
        return fits and there and plan.drawn.keys() == self._drawn.keys() and key == self._key

    def _takes(self, plan: BatchSchedule) -> bool:
        """Say whether there is room for images that do not stay where they are."""
        held, new = self._images, plan.images
        return not plan.resident and len(new) <= len(held) and new.shape[1:] == held.shape[1:]

    @torch.no_grad()
    def load(self, plan: BatchSchedule, who: ClientBatch, lrs: Sequence[float]) -> None:
        """Write what a stack of clients begins with into the tensors.

        Raises:
            ClientError: An algorithm lacks something.
        """
        for name, values in who.start.trained.items():
            tensor = self.tensors[name]
            if all(value is values[0] for value in values):
                tensor.copy_(values[0])
            else:
                tensor[: len(values)].copy_(torch.stack([value.to(tensor.device) for value in values]))
        for name, value in who.start.shared.items():
            self._alike[name].copy_(value)
        self._load_plan(plan)
        clients = len(who.requests)
        self._counts[:clients].copy_(who.counts)
        self._rates[:clients].copy_(torch.tensor(lrs))
        for zero in (self.sums, self._step, *self._momenta.values()):
            zero.zero_()
        self._load_aims(who)

    def _load_aims(self, who: ClientBatch) -> None:
        self.algorithm = StackedClientAlgorithm(
            self._model, who.algorithms, self.tensors, who.requests, who.memories
        )
        if not self._groups and not self._numbers:  # these clients are the first ones
            self._groups = {
                group: {name: torch.zeros_like(tensor) for name, tensor in state.items()}
                for group, state in self.algorithm.groups.items()
            }
            self._numbers = {name: torch.zeros_like(own) for name, own in self.algorithm.numbers.items()}
        for mine, own in self._pairs(len(who.requests)):
            mine.copy_(own)

    def _load_plan(self, plan: BatchSchedule) -> None:
        if not self._resident:
            self._images[: len(plan.images)].copy_(plan.images)
            self._labels[: len(plan.labels)].copy_(plan.labels)
        steps, clients, width = plan.at.shape
        # A place beyond has no weight, so nothing that stands there from another round counts.
        self._weights.zero_()
        self._weights[:steps, :clients, :width].copy_(plan.weights)
        self._at[:steps, :clients, :width].copy_(plan.at)
        for name, value in plan.drawn.items():
            self._drawn[name][..., :steps, :clients, :width].copy_(value)

    def _pairs(self, clients: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield rows of the groups and numbers here, each with those of the clients' algorithms."""
        here, there = first(self._groups, clients), self.algorithm.groups
        for group, state in there.items():
            yield from ((here[group][name], tensor) for name, tensor in state.items())
        yield from ((self._numbers[name][:clients], own) for name, own in self.algorithm.numbers.items())

    def ended(self, plan: BatchSchedule, who: ClientBatch, lrs: Sequence[float]) -> ClientBatchResult:
        """Close the round of these clients."""
        clients = len(who.requests)
        for mine, own in self._pairs(clients):
            own.copy_(mine)
        return ClientBatchResult(
            model=self._model,
            who=who,
            plan=plan,
            tensors={name: tensor[:clients] for name, tensor in self.tensors.items()},
            shared=who.start.shared,
            sums=self.sums[:clients],
            ends=self.algorithm.finish(plan.steps, lrs),
        )

    def advance(self, active: int, loss: Callable[[torch.Tensor], LossFn], record: GraphCapture) -> None:
        """Take the next step of the first ``active`` clients, or of some more.

        Raises:
            RuntimeError: The step cannot be recorded, or the recording does something else.
        """
        size = self._size(active)
        if size in self._played:
            self._played[size]()
            return
        before = self._snapshot()
        self._take(size, loss)
        wanted = self._snapshot()
        self._restore(before)
        self._played[size] = record(lambda: self._take(size, loss))
        self._restore(before)
        self._played[size]()
        if not all(map(_alike, self._written(), wanted)):
            raise RuntimeError("a recorded step gave something else than the step itself")

    def _size(self, active: int) -> int:
        """Return the smallest of K, K/2, K/4, ..., rounded up, that is enough."""
        size = len(self.sums)
        while size > 1 and -(-size // 2) >= active:
            size = -(-size // 2)
        return size

    def _written(self) -> list[torch.Tensor]:
        """Return all that a step writes."""
        groups = [tensor for state in self._groups.values() for tensor in state.values()]
        return [*self.tensors.values(), *self._momenta.values(), *groups, self.sums, self._step]

    def _snapshot(self) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in self._written()]

    def _restore(self, snapshot: Sequence[torch.Tensor]) -> None:
        for tensor, held in zip(self._written(), snapshot, strict=True):
            tensor.copy_(held)

    def _take(self, size: int, loss: Callable[[torch.Tensor], LossFn]) -> None:
        """Take a step with the first ``size`` clients: nothing but operations on the device."""
        slots = StepBatch(
            at=self._now(self._at, size),
            weights=self._now(self._weights, size),
            drawn={name: self._now(value, size) for name, value in self._drawn.items()},
        )
        moved = {name: nn.Parameter(tensor[:size]) for name, tensor in self.tensors.items()}
        batch = gather_batch(self._images, self._labels, slots, self._settings)
        with sdpa_kernel(SDPBackend.MATH):
            own = loss(self._counts[:size])
            sums = backward(self._model, moved, self._alike, batch, slots.weights, own, self._settings)
        live = slots.weights.amax(1) > 0
        self._adjust(moved, live)
        self._move(moved, live)
        self.sums[:size].add_(sums)
        self._step.add_(1)

    def _now(self, values: torch.Tensor, size: int) -> torch.Tensor:
        """Return what stands in [..., S, K, B] for this step and the first clients."""
        return values[..., :size, :].index_select(-3, self._step).squeeze(-3)

    @torch.no_grad()
    def _adjust(self, moved: dict[str, nn.Parameter], live: torch.Tensor) -> None:
        """Let the algorithms of clients that have images change their gradients, and their own tensors."""
        groups = first(self._groups, len(live))
        rows = [tensor for state in groups.values() for tensor in state.values()]
        before = [tensor.clone() for tensor in rows]
        self.algorithm.after_backward(
            moved, groups, {name: own[: len(live)] for name, own in self._numbers.items()}
        )
        for tensor, old in zip(rows, before, strict=True):
            tensor.copy_(torch.where(along(live, tensor), tensor, old))

    @torch.no_grad()
    def _move(self, moved: dict[str, nn.Parameter], live: torch.Tensor) -> None:
        """Let clients that have images take the optimiser's step at their own learning rates."""
        if limit := self._settings.training.clip_norm:
            clip_each([p.grad for p in moved.values()], limit)
        optimizer = self._settings.make_optimizer(list(moved.values()), 1.0)
        for name, momentum in self._momenta.items():
            optimizer.state[moved[name]]["momentum_buffer"] = momentum[: len(live)]
        before = [p.clone() for p in moved.values()]
        optimizer.step()
        for p, old in zip(moved.values(), before, strict=True):
            new = old + (p - old) * along(self._rates[: len(live)], p)
            p.copy_(torch.where(along(live, p), new, old))


def _alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    # A client that diverges does so in both.
    finite = wanted.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    scale = float(finite.abs().max()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True)
