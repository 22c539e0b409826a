"""What a federated method adds to the local loop: nothing, a pull to the global model, a control variate.

An objective works on gradients between ``backward`` and the optimiser's step, so it costs no second graph and
serves any optimiser. One object belongs to one client's training in one round. Only trainable parameters that
travel take part: what is frozen has no gradient, what stays at home has no counterpart in the global model,
and buffers are measured, not learned.

What an objective does in a step is a formula on tensors, so it is written once for a client alone and for
clients that are trained together, whose tensors lie on each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from fedvision.errors import ClientError
from fedvision.types import State, TrainRequest

Groups = Mapping[str, State]
"""Tensors by the name of what they are and that of their parameter."""
Numbers = Mapping[str, "float | torch.Tensor"]
"""Numbers of one client, or [K] of several."""


class ClientAlgorithm:
    """The plain loss: every hook does nothing."""

    parameters: Mapping[str, nn.Parameter] = MappingProxyType({})
    """The parameters that take part; ``begin`` sets it."""
    groups: Groups = MappingProxyType({})
    """What the formula reads and writes beside them, each tensor of its parameter's shape, device and type;
    ``begin`` sets it. Among clients that are trained together all have the same names here."""
    numbers: Mapping[str, float] = MappingProxyType({})
    """What it reads beside them; ``begin`` sets it."""

    def begin(self, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State) -> None:
        """Prepare for the local steps, before the first one; said twice, it prepares anew.

        Args:
            parameters: The model's parameters by name, holding the global model's values.
            request: Round, client, global state and the strategy's instruction.
            memory: What ``finish`` returned for this client before; empty at first. It may lack names.

        Raises:
            ClientError: The instruction lacks what the objective needs.
        """

    def after_backward(self) -> None:
        """Change the gradients in place: after backward (and unscaling), before clipping and the step.

        An objective that says this otherwise than by a formula is never trained together with other clients.
        """
        self.correct_gradients(self.parameters, self.groups, self.numbers)

    @staticmethod
    def correct_gradients(parameters: Mapping[str, nn.Parameter], groups: Groups, numbers: Numbers) -> None:
        """Change gradients and groups in place, by operations on tensors that look at no value.

        The same operations serve one client, and K whose tensors and numbers have a dimension [K] before all
        others; ``along`` lays the numbers beside a tensor. A parameter without gradient is left alone.

        Args:
            parameters: Those that take part, with their gradients.
            groups: As ``begin`` set them.
            numbers: As ``begin`` set them.
        """

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Close the round, while parameters and groups hold what the last step left.

        Args:
            steps: Local steps taken.
            lr: The round's learning rate.

        Returns:
            Groups of tensors for ``ClientUpdate.tensors``, and what this client remembers: contiguous, on
            the CPU.
        """
        return {}, {}


class Prox(ClientAlgorithm):
    """FedProx's pull towards the global model: mu/2 ||w - w_global||^2, whose gradient is mu (w - w_global).

    Li et al. 2020, arXiv 1812.06127. The instruction carries the number ``mu``. With momentum or an adaptive
    optimiser the pull goes through the optimiser, as the penalty of the paper would.
    """

    def begin(self, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State) -> None:
        """Take mu and the global model's values."""
        numbers = request.client_config.numbers
        if "mu" not in numbers:
            raise ClientError(
                request.client,
                "training",
                "the objective 'prox' got no number 'mu'; the strategy's instruct must send it",
            )
        self.numbers = {"mu": numbers["mu"]}
        self.parameters = _taking_part(parameters, request)
        anchors = {name: _beside(request.state[name], p) for name, p in self.parameters.items()}
        self.groups = {"anchor": anchors}

    @staticmethod
    @torch.no_grad()
    def correct_gradients(parameters: Mapping[str, nn.Parameter], groups: Groups, numbers: Numbers) -> None:
        """Add mu (w - w_global) to each gradient."""
        weights, gradients, anchors = _columns(parameters, groups["anchor"])
        if not weights:
            return
        pulls = torch._foreach_sub(weights, anchors)
        mu = numbers["mu"]
        if isinstance(mu, torch.Tensor):
            torch._foreach_mul_(pulls, [along(mu, pull) for pull in pulls])
        else:
            torch._foreach_mul_(pulls, mu)
        torch._foreach_add_(gradients, pulls)


class Scaffold(ClientAlgorithm):
    """SCAFFOLD's correction: each step follows gradient + c - c_i.

    Karimireddy et al. 2020, arXiv 1910.06378, option II. The instruction carries the group ``control``, the
    server's c; the client remembers c_i; a tensor missing in either is zero. The client sends back the group
    ``control`` with its new c_i minus the old one.

    The new c_i is the mean of the local gradients before correction. For plain SGD this is option II's
    ``c_i - c + (x - y) / (steps * lr)`` exactly; unlike that formula it stays a mean of gradients under
    momentum (where (x - y) grows to 1 / (1 - momentum) times as much and the method diverges), under adaptive
    optimisers and under clipping.
    """

    def begin(self, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State) -> None:
        """Take c, c_i and their difference to the parameters' device."""
        self.parameters = _taking_part(parameters, request)
        control = request.client_config.tensors.get("control", {})
        self._own: State = {}
        corrections: State = {}
        for name, p in self.parameters.items():
            zeros = torch.zeros_like(p, requires_grad=False)
            self._own[name] = _beside(memory[name], p) if name in memory else zeros
            server = _beside(control[name], p) if name in control else zeros
            corrections[name] = server - self._own[name]
        sums = {name: torch.zeros_like(own) for name, own in self._own.items()}
        self.groups = {"sum": sums, "correction": corrections}

    @staticmethod
    @torch.no_grad()
    def correct_gradients(parameters: Mapping[str, nn.Parameter], groups: Groups, numbers: Numbers) -> None:
        """Add the gradients to their sums, then the corrections to the gradients."""
        _, gradients, sums, corrections = _columns(parameters, groups["sum"], groups["correction"])
        if not gradients:
            return
        # The optimiser skips a half-precision step that overflowed; it must not spoil the memory either.
        finite = [torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0) for gradient in gradients]
        torch._foreach_add_(sums, finite)
        torch._foreach_add_(gradients, corrections)

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the change of c_i and the new c_i; without a step, or with a lost model, nothing changes."""
        # The server refuses a model that is not finite and never hears of the new c_i, so it must not stay.
        sound = steps and all(bool(torch.isfinite(p).all()) for p in self.parameters.values())
        new = {name: total / steps for name, total in self.groups["sum"].items()} if sound else self._own
        change = {name: new[name] - old for name, old in self._own.items()}
        return {"control": _at_rest(change)}, _at_rest(new)


def along(numbers: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return K clients' numbers [K] in a shape that lies beside a tensor [K, ...]."""
    return numbers.view(-1, *[1] * (tensor.dim() - 1))


def _taking_part(parameters: Mapping[str, nn.Parameter], request: TrainRequest) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained and travel."""
    return {name: p for name, p in parameters.items() if p.requires_grad and name in request.state}


def _beside(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Return a copy of a tensor with the parameter's device, dtype and memory layout."""
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def _at_rest(state: State) -> State:
    return {name: tensor.contiguous().cpu() for name, tensor in state.items()}


def _columns(parameters: Mapping[str, nn.Parameter], *groups: State) -> list[list[torch.Tensor]]:
    """Return, of the parameters that have a gradient: these, the gradients, and each group's tensors."""
    rows = [
        [p, p.grad, *(group[name] for group in groups)]
        for name, p in parameters.items()
        if p.grad is not None
    ]
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(2 + len(groups))]
