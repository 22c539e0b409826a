"""SCAFFOLD: control variates take the drift out of local steps on unlike data.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", arXiv 1910.06378, Algorithm 1, option II. The server keeps c, client i keeps c_i; a local step
follows ``gradient + c - c_i``. After the round::

    x <- x + server_lr * mean_i(y_i - x)
    c <- c + |S| / N * mean_i(c_i' - c_i)          S the cohort, N all clients

Both means are plain, as in the paper: c is the mean of all c_i, so local steps descend the plain mean of the
clients' losses, and a mean of models by examples would pull towards another optimum than c does. A client
with 10 images therefore counts as much as one with 1000; where sizes differ much and this is not wanted,
FedAvg is it.

Clients must keep c_i between rounds, so the method suits federations whose members come back. The round's
traffic is twice FedAvg's. The correction pushes the same way at every local step, so SCAFFOLD diverges at
learning rates that FedAvg still stands: begin with lr / (1 - momentum) of 0.1 or less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision.aggregation.summation import accumulate_dtype
from fedvision.algorithms.fedavg import only_averaged
from fedvision.algorithms.mean import MODEL, MeanStrategy, WeightedTensors
from fedvision.errors import RunError
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import (
    ClientAlgorithm,
    Groups,
    Numbers,
    copy_like,
    gradient_columns,
    shared_parameters,
    to_storage,
)
from fedvision.types import ClientConfig, ClientUpdate, State, TrainRequest

if TYPE_CHECKING:
    import numpy as np

_CONTROL = "control"


class ScaffoldClient(ClientAlgorithm):
    """The correction: each step follows gradient + c - c_i.

    The server half sends the group ``control``, which is c; the client keeps c_i; a tensor missing in either
    is zero. The client sends back the group ``control`` with its new c_i minus the old one.

    The new c_i is the mean of the local gradients before correction. For plain SGD this is option II's
    ``c_i - c + (x - y) / (steps * lr)`` exactly; unlike that formula it stays a mean of gradients under
    momentum (where (x - y) grows to 1 / (1 - momentum) times as much and the method diverges), under adaptive
    optimisers and under clipping.
    """

    sends = (_CONTROL,)

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take c, c_i and their difference to the parameters' device."""
        self.parameters = shared_parameters(parameters, request)
        control = request.client_config.tensors.get(_CONTROL, {})
        self._own: State = {}
        corrections: State = {}
        for name, p in self.parameters.items():
            zeros = torch.zeros_like(p, requires_grad=False)
            self._own[name] = copy_like(memory[name], p) if name in memory else zeros
            server = copy_like(control[name], p) if name in control else zeros
            corrections[name] = server - self._own[name]
        sums = {name: torch.zeros_like(own) for name, own in self._own.items()}
        self.groups = {"sum": sums, "correction": corrections}

    @staticmethod
    @torch.no_grad()
    def correct_gradients(parameters: Mapping[str, nn.Parameter], groups: Groups, numbers: Numbers) -> None:
        """Add the gradients to their sums, then the corrections to the gradients."""
        _, gradients, sums, corrections = gradient_columns(parameters, groups["sum"], groups["correction"])
        if not gradients:
            return
        # The optimiser skips a half-precision step that overflowed; it must not spoil the memory either.
        finite = [torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0) for gradient in gradients]
        torch._foreach_add_(sums, finite)
        torch._foreach_add_(gradients, corrections)

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the change of c_i and the new c_i; without a step, or with a lost model, nothing changes."""
        # The server refuses a model that is not finite and never gets the new c_i, so it must not stay.
        sound = steps and all(bool(torch.isfinite(p).all()) for p in self.parameters.values())
        new = {name: total / steps for name, total in self.groups["sum"].items()} if sound else self._own
        change = {name: new[name] - old for name, old in self._own.items()}
        return {_CONTROL: to_storage(change)}, to_storage(new)


class Scaffold(MeanStrategy):
    """Plain means of models and control variates.

    Args:
        server_lr: Step towards the mean model, > 0; 1 takes the mean itself.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = ScaffoldClient

    def __init__(self, *, server_lr: float = 1.0, fraction: float = 1.0, min_clients: int = 1) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(above=0, server_lr=server_lr)
        self.server_lr = server_lr
        self.control: State = {}
        """The server's c: zeros, that is empty, until the first round has ended."""
        self.clients = 0
        """N, the most that a selection saw: who is busy or away now still has a c_i in c."""

    def select(self, round: int, clients: Sequence[int], rng: np.random.Generator) -> list[int]:
        """Draw the cohort and remember how many clients there are."""
        self.clients = max(self.clients, len(clients))
        return super().select(round, clients, rng)

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send the server's control variate; a tensor that is not in it is zero."""
        return ClientConfig(tensors={_CONTROL: self.control})

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Add the model and the change of c_i, each with weight 1.

        Raises:
            RunError: The update has no ``control`` tensors.
        """
        change = WeightedTensors(state=_change(update), weight=1.0)
        return {MODEL: WeightedTensors(state=update.state, weight=1.0), _CONTROL: change}

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Step towards the mean model and move c by the share of clients whose updates were used."""
        share = num_updates / max(self.clients, num_updates)
        self.control = {
            name: change.mul_(share).add_(self.control[name]) if name in self.control else change.mul_(share)
            for name, change in means[_CONTROL].items()
        }
        return {name: self._step(name, state[name], mean) for name, mean in means[MODEL].items()}

    def _step(self, name: str, old: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        if self.server_lr == 1 or only_averaged(name):
            return mean
        start = old.to(accumulate_dtype(old.dtype))
        return (start + self.server_lr * (mean.to(start.dtype) - start)).to(old.dtype)


def _change(update: ClientUpdate) -> State:
    """Return c_i' - c_i as the client sent it."""
    if _CONTROL not in update.tensors:
        raise RunError(
            f"client {update.client} sent no 'control' tensors; its training must use SCAFFOLD's client half"
        )
    return update.tensors[_CONTROL]
