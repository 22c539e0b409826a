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

from fedvision.models.state import floating
from fedvision.training.loop import LoopSettings
from fedvision.training.vectorized.batch_schedule import BatchSchedule, StepBatch
from fedvision.training.vectorized.client_batch import ClientBatch, ClientBatchResult
from fedvision.training.vectorized.client_stack import ClientStack, StackedClientAlgorithm, fill, rows
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
        plan: The largest number of clients, steps and images a batch.
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
        self._slots = {
            name: value.new_zeros((*value.shape[:-3], *room)) for name, value in _slots(plan).items()
        }
        self._counts = who.counts.clone()
        self._rates, self.sums = plan.weights.new_zeros(clients), plan.weights.new_zeros(clients)
        self._step = torch.zeros(1, dtype=torch.int64, device=settings.device)
        own = {name: tensor.detach() for name, tensor in floating(model).items()}
        self.tensors = {name: own[name].new_zeros((clients, *own[name].shape)) for name in who.trained}
        self._alike = {name: tensor.clone() for name, tensor in own.items() if name not in who.trained}
        momentum = settings.training.momentum
        self._momenta = {name: torch.zeros_like(t) for name, t in self.tensors.items() if momentum}
        self._played: dict[int, Replay] = {}
        self._groups: dict[str, State] = {}
        self._numbers: State = {}

    def holds(self, plan: BatchSchedule, key: Hashable) -> bool:
        """Return whether a plan fits in, and the recordings serve it."""
        held, new = self._images, plan.images
        fits = all(own <= room for own, room in zip(plan.at.shape, self._slots["at"].shape, strict=True))
        there = len(new) <= len(held) and new.shape[1:] == held.shape[1:] and not plan.resident
        there = new is held if self._resident else there
        return fits and there and _slots(plan).keys() == self._slots.keys() and key == self._key

    @torch.no_grad()
    def load(self, plan: BatchSchedule, who: ClientBatch, lrs: Sequence[float]) -> None:
        """Write what a stack of clients begins with into the tensors.

        Raises:
            ClientError: An algorithm lacks something.
        """
        clients = len(who.jobs)
        for name, values in who.trained.items():
            fill(self.tensors[name][:clients], values)
        for name, value in who.shared.items():
            self._alike[name].copy_(value)
        if not self._resident:
            self._images[: len(plan.images)].copy_(plan.images)
            self._labels[: len(plan.labels)].copy_(plan.labels)
        # A place beyond has no weight, so nothing that stands there from another round counts.
        self._slots["weights"].zero_()
        steps, _, width = plan.at.shape
        for name, value in _slots(plan).items():
            self._slots[name][..., :steps, :clients, :width].copy_(value)
        self._counts[:clients].copy_(who.counts)
        self._rates[:clients].copy_(torch.tensor(lrs))
        for zero in (self.sums, self._step, *self._momenta.values()):
            zero.zero_()
        self.algorithm = StackedClientAlgorithm(self._model, self.tensors, who)
        if not self._groups and not self._numbers:  # these clients are the first ones
            self._groups = {
                group: {name: torch.zeros_like(tensor) for name, tensor in state.items()}
                for group, state in self.algorithm.groups.items()
            }
            self._numbers = {name: torch.zeros_like(own) for name, own in self.algorithm.numbers.items()}
        for mine, own in self._pairs(clients):
            mine.copy_(own)

    def _pairs(self, clients: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield rows of the groups and numbers here, each with those of the clients' algorithms."""
        for group, state in self.algorithm.groups.items():
            yield from ((self._groups[group][name][:clients], tensor) for name, tensor in state.items())
        yield from ((self._numbers[name][:clients], own) for name, own in self.algorithm.numbers.items())

    def ended(self, plan: BatchSchedule, who: ClientBatch, lrs: Sequence[float]) -> ClientBatchResult:
        """Close the round of these clients."""
        clients = len(who.jobs)
        for mine, own in self._pairs(clients):
            own.copy_(mine)
        return ClientBatchResult(
            model=self._model,
            who=who,
            plan=plan,
            tensors=rows(self.tensors, clients),
            shared=who.shared,
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
        now = {
            name: value[..., :size, :].index_select(-3, self._step).squeeze(-3)
            for name, value in self._slots.items()
        }
        slots = StepBatch(at=now.pop("at"), weights=now.pop("weights"), drawn=now)
        parameters = {name: nn.Parameter(tensor[:size]) for name, tensor in self.tensors.items()}
        optimizer = self._settings.make_optimizer(list(parameters.values()), 1.0)
        for name, momentum in self._momenta.items():
            optimizer.state[parameters[name]]["momentum_buffer"] = momentum[:size]
        stack = ClientStack(
            model=self._model,
            settings=self._settings,
            parameters=parameters,
            own={},
            shared=self._alike,
            algorithm=self.algorithm,
            groups={group: rows(state, size) for group, state in self._groups.items()},
            numbers=rows(self._numbers, size),
            optimizer=optimizer,
            scales=self._rates[:size],
        )
        live = slots.weights.amax(1) > 0
        sums = stack.step(self._images, self._labels, slots, loss(self._counts[:size]), live)
        self.sums[:size].add_(sums)
        self._step.add_(1)


def _slots(plan: BatchSchedule) -> dict[str, torch.Tensor]:
    """Return what a step looks up by its number, each [..., S, K, B]."""
    return {"at": plan.at, "weights": plan.weights, **plan.drawn}


def _alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    # A client that diverges does so in both.
    finite = wanted.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    scale = float(finite.abs().max()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True)
