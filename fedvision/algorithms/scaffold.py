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

from fedvision.aggregation.summation import accumulate_dtype
from fedvision.algorithms.fedavg import only_averaged
from fedvision.algorithms.mean import MODEL, MeanStrategy, WeightedTensors
from fedvision.errors import RunError
from fedvision.types import ClientConfig, ClientUpdate, State

if TYPE_CHECKING:
    import numpy as np
    import torch

_CONTROL = "control"


class Scaffold(MeanStrategy):
    """Plain means of models and control variates.

    Args:
        server_lr: Step towards the mean model, > 0; 1 takes the mean itself.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    objective = "scaffold"

    def __init__(self, *, server_lr: float = 1.0, fraction: float = 1.0, min_clients: int = 1) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        if not server_lr > 0:
            raise ValueError(f"server_lr must be > 0, not {server_lr}")
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
        return ClientConfig(objective=self.objective, tensors={_CONTROL: self.control})

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Add the model and the change of c_i, each with weight 1.

        Raises:
            RunError: The update has no ``control`` tensors.
        """
        change = WeightedTensors(state=_change(update), weight=1.0)
        return {MODEL: WeightedTensors(state=update.state, weight=1.0), _CONTROL: change}

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Step towards the mean model and move c by the share of clients that were heard."""
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
            f"client {update.client} sent no 'control' tensors; its training must apply the objective "
            "'scaffold'"
        )
    return update.tensors[_CONTROL]
