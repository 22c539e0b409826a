"""What a federated method adds to the local loop: nothing, a pull to the global model, a control variate.

An objective works on gradients between ``backward`` and the optimiser's step, so it costs no second graph and
serves any optimiser. One object belongs to one client's training in one round. Only trainable parameters that
travel take part: what is frozen has no gradient, what stays at home has no counterpart in the global model,
and buffers are measured, not learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import nn

from fedvision.errors import ClientError
from fedvision.types import State, Task


class Objective:
    """The plain loss: every hook does nothing."""

    def begin(self, parameters: Mapping[str, nn.Parameter], task: Task, memory: State) -> None:
        """Prepare for the local steps, before the first one.

        Args:
            parameters: The model's parameters by name, holding the global model's values.
            task: Round, client, global state and the strategy's instruction.
            memory: What ``finish`` returned for this client before; empty at first. It may lack names.

        Raises:
            ClientError: The instruction lacks what the objective needs.
        """

    def adjust(self) -> None:
        """Change the gradients in place: after backward (and unscaling), before clipping and the step."""

    @classmethod
    def adjust_all(cls, objectives: Sequence[Self]) -> None:
        """Do what ``adjust`` does for several clients at once, in few kernels.

        Only an objective whose own class has this method is trained in a stack of clients. There, the
        parameters that ``begin`` got are views of the stack: their values and gradients may be read, and the
        gradients changed in place, between its steps; hooks and graphs on them see nothing.
        """

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Close the round, while the parameters hold the trained values.

        Args:
            steps: Local steps taken.
            lr: The round's learning rate.

        Returns:
            Groups of tensors for ``Update.tensors``, and what this client remembers: contiguous, on the CPU.
        """
        return {}, {}


class Prox(Objective):
    """FedProx's pull towards the global model: mu/2 ||w - w_global||^2, whose gradient is mu (w - w_global).

    Li et al. 2020, arXiv 1812.06127. The instruction carries the number ``mu``. With momentum or an adaptive
    optimiser the pull goes through the optimiser, as the penalty of the paper would.
    """

    def begin(self, parameters: Mapping[str, nn.Parameter], task: Task, memory: State) -> None:
        """Take mu and the global model's values."""
        numbers = task.instruction.numbers
        if "mu" not in numbers:
            raise ClientError(
                task.client,
                "training",
                "the objective 'prox' got no number 'mu'; the strategy's instruct must send it",
            )
        self._mu = numbers["mu"]
        self._parameters = _taking_part(parameters, task)
        self._anchors = {name: _beside(task.state[name], p) for name, p in self._parameters.items()}

    def adjust(self) -> None:
        """Add mu (w - w_global) to each gradient."""
        self.adjust_all([self])

    @classmethod
    @torch.no_grad()
    def adjust_all(cls, objectives: Sequence[Self]) -> None:
        """Add mu (w - w_global) to each gradient, clients of one mu together."""
        by_mu: dict[float, list[Self]] = {}
        for objective in objectives:
            by_mu.setdefault(objective._mu, []).append(objective)
        for mu, alike in by_mu.items():
            moved = [(p, p.grad, o._anchors[name]) for o in alike for name, p in _moved(o._parameters)]
            if mu and moved:
                weights, gradients, anchors = _columns(moved)
                torch._foreach_add_(gradients, torch._foreach_sub(weights, anchors), alpha=mu)


class Scaffold(Objective):
    """SCAFFOLD's correction: each step follows gradient + c - c_i.

    Karimireddy et al. 2020, arXiv 1910.06378, option II. The instruction carries the group ``control``, the
    server's c; the client remembers c_i; a tensor missing in either is zero. The client sends back the group
    ``control`` with its new c_i minus the old one.

    The new c_i is the mean of the local gradients before correction. For plain SGD this is option II's
    ``c_i - c + (x - y) / (steps * lr)`` exactly; unlike that formula it stays a mean of gradients under
    momentum (where (x - y) grows to 1 / (1 - momentum) times as much and the method diverges), under adaptive
    optimisers and under clipping.
    """

    def begin(self, parameters: Mapping[str, nn.Parameter], task: Task, memory: State) -> None:
        """Take c, c_i and their difference to the parameters' device."""
        self._parameters = _taking_part(parameters, task)
        control = task.instruction.tensors.get("control", {})
        self._own: State = {}
        self._corrections: State = {}
        for name, p in self._parameters.items():
            zeros = torch.zeros_like(p, requires_grad=False)
            self._own[name] = _beside(memory[name], p) if name in memory else zeros
            server = _beside(control[name], p) if name in control else zeros
            self._corrections[name] = server - self._own[name]
        self._sums = {name: torch.zeros_like(own) for name, own in self._own.items()}

    def adjust(self) -> None:
        """Add the gradients to their sums, then the corrections to the gradients."""
        self.adjust_all([self])

    @classmethod
    @torch.no_grad()
    def adjust_all(cls, objectives: Sequence[Self]) -> None:
        """Add each client's gradients to its sums, then its corrections to its gradients."""
        moved = [
            (p.grad, o._sums[name], o._corrections[name])
            for o in objectives
            for name, p in _moved(o._parameters)
        ]
        if not moved:
            return
        gradients, sums, corrections = _columns(moved)
        # The optimiser skips a half-precision step that overflowed; it must not spoil the memory either.
        finite = [torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0) for gradient in gradients]
        torch._foreach_add_(sums, finite)
        torch._foreach_add_(gradients, corrections)

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the change of c_i and the new c_i; without a step, or with a lost model, nothing changes."""
        # The server refuses a model that is not finite and never hears of the new c_i, so it must not stay.
        sound = steps and all(bool(torch.isfinite(p).all()) for p in self._parameters.values())
        new = {name: total / steps for name, total in self._sums.items()} if sound else self._own
        change = {name: new[name] - old for name, old in self._own.items()}
        return {"control": _at_rest(change)}, _at_rest(new)


def _taking_part(parameters: Mapping[str, nn.Parameter], task: Task) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained and travel."""
    return {name: p for name, p in parameters.items() if p.requires_grad and name in task.state}


def _beside(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Return a copy of a tensor with the parameter's device, dtype and memory layout."""
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def _at_rest(state: State) -> State:
    return {name: tensor.contiguous().cpu() for name, tensor in state.items()}


def _moved(parameters: Mapping[str, nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in parameters.items() if p.grad is not None]


def _columns(rows: Sequence[tuple[torch.Tensor | None, ...]]) -> list[list[torch.Tensor]]:
    """Return the tensors of each place of the rows as one list; none is missing."""
    return [[tensor for tensor in column if tensor is not None] for column in zip(*rows, strict=True)]
