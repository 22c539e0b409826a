"""Stochastic gradient descent without the machinery of torch.compile.

The same arithmetic to the bit as ``torch.optim.SGD``, whose first use imports torch's compiler (a second and
80 MB in every worker process) and whose wrappers cost 4 % of a small network's step. ``"torch.optim:SGD"``
names the other one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fedvision.ranges import check_range


class SGD:
    """What the local loop needs of an optimiser, with momentum and weight decay.

    Args:
        params: What is to be trained.
        lr: Learning rate, >= 0.
        momentum: Share of the last direction that is kept, >= 0 and < 1.
        dampening: Share of the gradient that is kept from the direction, >= 0 and <= 1.
        weight_decay: Strength of the L2 penalty, >= 0.
        nesterov: Look ahead along the direction; needs momentum and no dampening.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        check_range(at_least=0, lr=lr, weight_decay=weight_decay)
        check_range(at_least=0, below=1, momentum=momentum)
        check_range(at_least=0, at_most=1, dampening=dampening)
        if nesterov and (not momentum or dampening):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")
        self.lr, self.momentum, self.dampening = lr, momentum, dampening
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self.param_groups: list[dict[str, Any]] = [{"params": list(params), "lr": lr}]
        """As torch's optimisers have it: gradient scalers read it."""
        self.state: defaultdict[nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)
        """Each parameter's direction, as ``momentum_buffer``."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let all gradients go."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        moved = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        if not moved:
            return
        gradients = [p.grad for p in moved]
        if self.weight_decay:
            gradients = list(torch._foreach_add(gradients, moved, alpha=self.weight_decay))
        if self.momentum:
            gradients = self._directions(moved, gradients)
        torch._foreach_add_(moved, gradients, alpha=-self.lr)

    def _directions(self, moved: list[nn.Parameter], gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        known = [place for place, p in enumerate(moved) if "momentum_buffer" in self.state[p]]
        if known:
            buffers = [self.state[moved[place]]["momentum_buffer"] for place in known]
            torch._foreach_mul_(buffers, self.momentum)
            torch._foreach_add_(buffers, [gradients[place] for place in known], alpha=1 - self.dampening)
        for p, gradient in zip(moved, gradients, strict=True):
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = gradient.detach().clone()
        buffers = [self.state[p]["momentum_buffer"] for p in moved]
        return list(torch._foreach_add(gradients, buffers, alpha=self.momentum)) if self.nesterov else buffers
