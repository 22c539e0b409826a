"""Server optimisers: the mean change of a round is a gradient for the server.

Hsu, Qi, Brown 2019, arXiv 1909.06335 (FedAvgM) and Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar,
McMahan 2021, "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2 (the other three). With the
cohort's mean model y, weighted by examples, and the old model x::

    d = y - x                             the negative of a gradient, so the step is added
    FedAvgM      m <- momentum m + d                           x <- x + server_lr m
    the others   m <- beta1 m + (1 - beta1) d                  x <- x + server_lr m / (sqrt(v) + tau)
      FedAdagrad v <- v + d^2
      FedAdam    v <- beta2 v + (1 - beta2) d^2
      FedYogi    v <- v - (1 - beta2) d^2 sign(v - d^2)

As in the paper m starts at 0, v at tau^2, and no bias is corrected. (Flower's strategies of these names start
v at 0, and its FedAdam corrects the bias as if one round more had passed.) Running statistics of batch
normalisation are averaged and never optimised. Moments are kept in float32 or wider.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch

from fedvision.algorithms.fedavg import only_averaged
from fedvision.algorithms.mean import MODEL, MeanStrategy, WeightedTensors
from fedvision.ranges import check_range
from fedvision.types import ClientUpdate, State


class FedAvgM(MeanStrategy):
    """FedAvg with momentum on the server; ``server_lr=1, momentum=0`` is FedAvg.

    Args:
        server_lr: The server's learning rate, > 0.
        momentum: Share of the last direction that is kept, 0 <= momentum < 1.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, *, server_lr: float = 1.0, momentum: float = 0.9, fraction: float = 1.0, min_clients: int = 1
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(above=0, server_lr=server_lr)
        check_range(at_least=0, below=1, momentum=momentum)
        self.server_lr, self.momentum = server_lr, momentum
        self.direction: State = {}
        """m by tensor."""

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Add the change of the model, weighted by examples."""
        return _change(state, update)

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Return the old model plus server_lr times the direction."""
        return _step(state, means[MODEL], self.server_lr, self._direct)

    def _direct(self, name: str, change: torch.Tensor) -> torch.Tensor:
        if name in self.direction:
            change = self.momentum * self.direction[name] + change
        self.direction[name] = change
        return change


class AdaptiveOptimizer(MeanStrategy):
    """What FedAdagrad, FedAdam and FedYogi share: all but the rule of v.

    Args:
        server_lr: The server's learning rate, > 0.
        beta1: Decay of the first moment, 0 <= beta1 < 1.
        beta2: Decay of the second moment, 0 <= beta2 < 1.
        tau: Degree of adaptivity, > 0: the smaller, the more alike are the steps of all coordinates.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        server_lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(above=0, server_lr=server_lr, tau=tau)
        check_range(at_least=0, below=1, beta1=beta1, beta2=beta2)
        self.server_lr, self.beta1, self.beta2, self.tau = server_lr, beta1, beta2, tau
        self.first_moment: State = {}
        """m by tensor."""
        self.second_moment: State = {}
        """v by tensor."""

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Add the change of the model, weighted by examples."""
        return _change(state, update)

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Return the old model plus server_lr m / (sqrt(v) + tau)."""
        return _step(state, means[MODEL], self.server_lr, self._direct)

    def _direct(self, name: str, change: torch.Tensor) -> torch.Tensor:
        if name not in self.first_moment:
            self.first_moment[name] = torch.zeros_like(change)
            self.second_moment[name] = torch.full_like(change, self.tau**2)
        first = self.beta1 * self.first_moment[name] + (1 - self.beta1) * change
        second = self.spread(self.second_moment[name], change.square())
        self.first_moment[name], self.second_moment[name] = first, second
        return first / (second.sqrt() + self.tau)

    @abstractmethod
    def spread(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """Return the new second moment v of one tensor.

        Args:
            second: The old v, > 0.
            square: d^2.
        """


class FedAdagrad(AdaptiveOptimizer):
    """Steps that shrink as squared changes add up. Without first moment unless ``beta1`` is given.

    Args:
        server_lr: The server's learning rate, > 0.
        beta1: Decay of the first moment, 0 <= beta1 < 1.
        tau: Degree of adaptivity, > 0.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        server_lr: float = 0.1,
        beta1: float = 0.0,
        tau: float = 1e-3,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(
            server_lr=server_lr, beta1=beta1, beta2=0.0, tau=tau, fraction=fraction, min_clients=min_clients
        )

    def spread(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """Return v + d^2: nothing decays, so there is no beta2."""
        return second + square


class FedAdam(AdaptiveOptimizer):
    """Steps scaled by a decaying mean of squared changes."""

    def spread(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """Return beta2 v + (1 - beta2) d^2."""
        return self.beta2 * second + (1 - self.beta2) * square


class FedYogi(AdaptiveOptimizer):
    """FedAdam whose v moves by at most (1 - beta2) d^2 a round, so it forgets a large change slowly."""

    def spread(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """Return v - (1 - beta2) d^2 sign(v - d^2), which stays > 0."""
        return second - (1 - self.beta2) * square * torch.sign(second - square)


def _change(state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
    """Return the change y - x, weighted by examples; statistics as they are.

    The mean of the changes is exact where no client moved; the mean of the models minus x is a rounding error
    there, which a small tau would make a step of.
    """
    changes = {
        name: update.state[name] if only_averaged(name) else change
        for name, change in update.delta(state).items()
    }
    return {MODEL: WeightedTensors(state=changes, weight=float(update.examples))}


def _step(
    state: State, mean: State, server_lr: float, direct: Callable[[str, torch.Tensor], torch.Tensor]
) -> State:
    """Add server_lr times the direction to each tensor of the old model; take the mean of statistics."""
    new: State = {}
    for name, change in mean.items():
        old = state[name]
        stepped = change if only_averaged(name) else old.to(change.dtype) + server_lr * direct(name, change)
        new[name] = stepped.to(old.dtype)
    return new
