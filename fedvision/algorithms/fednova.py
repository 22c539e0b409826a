"""FedNova: normalised averaging, for clients that take unlike numbers of local steps.

Wang, Liu, Liang, Joshi, Poor 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", arXiv 2007.07481. With n_k images, FedAvg gives a client that takes more steps more than its
share n_k / n, and converges to the optimum of another objective. FedNova divides each client's change by
||a_k||_1, the sum of the factors with which its local gradients enter it, before it averages::

    x <- x + tau_eff * sum_k p_k (y_k - x) / ||a_k||_1      tau_eff = sum_k p_k ||a_k||_1,  p_k = n_k / n

For s local steps (section 4 and Theorem 1's examples)::

    plain SGD                          ||a||_1 = s
    momentum rho                       ||a||_1 = (s - rho (1 - rho^s) / (1 - rho)) / (1 - rho)
    proximal, alpha = lr mu            ||a||_1 = (1 - (1 - alpha)^s) / alpha

As in the paper, except that p_k are shares of the round's cohort and not of the whole federation, and that
the paper's server momentum is not part of it. Proximal steps with momentum have no such formula and are
refused, as are other optimisers than ``sgd``. Weight decay counts as a part of the gradient; clipped
gradients are normalised as if they were not. Where all clients take as many steps it is FedAvg.

A client sends its ||a_k||_1 beside its model. Statistics of batch normalisation are averaged by images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from fedvision.aggregation.summation import accumulate_dtype
from fedvision.algorithms.fedavg import only_averaged
from fedvision.algorithms.fedprox import FedProxClient
from fedvision.algorithms.mean import MODEL, MeanStrategy, WeightedTensors
from fedvision.errors import ConfigError, RunError
from fedvision.ranges import check_range
from fedvision.types import ClientConfig, ClientUpdate, State, TrainRequest

if TYPE_CHECKING:
    from torch import nn

    from fedvision.config import ExperimentConfig

_STEPS, _NORM, _INVERSE = "steps", "norm", "inverse"
_STATISTICS = "statistics"
_MOST = 2.0**40
"""Of a client's ||a||_1: beyond it there is no run, and a sum of such would lose the others' digits."""


class FedNovaClient(FedProxClient):
    """FedProx's client half (mu may be 0), which also sends ||a||_1 of its local steps.

    The group ``steps`` has one float64 number, ``norm``.
    """

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take mu, the momentum and the global model's values.

        Raises:
            ClientError: The request has no number ``mu``.
        """
        super().begin(model, parameters, request, memory)
        self._momentum = request.client_config.numbers.get("momentum", 0.0)

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return ||a||_1 of the steps taken."""
        norm = steps_norm(steps, momentum=self._momentum, alpha=lr * self.numbers["mu"])
        return {_STEPS: {_NORM: torch.tensor(norm, dtype=torch.float64)}}, {}


class FedNova(MeanStrategy):
    """Each client's change counts by its images and not by its local steps.

    Args:
        mu: Strength of FedProx's pull towards the global model on the clients, >= 0; 0 is without.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedNovaClient

    def __init__(self, *, mu: float = 0.0, fraction: float = 1.0, min_clients: int = 1) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, mu=mu)
        self.mu = mu
        self.momentum = 0.0
        """That of the clients' optimiser."""

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Take note of the momentum.

        Raises:
            ConfigError: The optimiser is none whose steps the method can normalise.
        """
        training, needs = config.training, "[strategy] use = 'fednova' normalises the steps of plain SGD"
        args = {"momentum": training.momentum, **training.optimizer.args}
        if training.optimizer.use != "sgd" or args.get("nesterov") or args.get("dampening"):
            raise ConfigError(
                f"{needs} and of SGD with momentum; set training.optimizer = 'sgd', without nesterov and "
                "dampening"
            )
        self.momentum = float(args["momentum"])
        if self.mu and self.momentum:
            raise ConfigError(
                f"{needs}, of momentum and of a proximal term, not of both; set strategy.mu or "
                "training.momentum to 0"
            )
        if self.mu * training.lr > 1:
            raise ConfigError(
                f"{needs} with a proximal term where strategy.mu * training.lr <= 1, not "
                f"{self.mu * training.lr:g}; lower one of them"
            )

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send mu and the momentum."""
        return ClientConfig(numbers={"mu": self.mu, "momentum": self.momentum})

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Add the model, weighted by images over steps, and ||a||_1 and its inverse, by images.

        Raises:
            RunError: The update has no such number.
        """
        norm, images = _norm(update), float(update.examples)
        sizes = {_NORM: torch.tensor(norm, dtype=torch.float64)}
        sizes[_INVERSE] = 1 / sizes[_NORM]
        parameters = {name: t for name, t in update.state.items() if not only_averaged(name)}
        measured = {name: t for name, t in update.state.items() if only_averaged(name)}
        found = {
            MODEL: WeightedTensors(state=parameters, weight=images / norm),
            _STEPS: WeightedTensors(state=sizes, weight=images),
        }
        return found | ({_STATISTICS: WeightedTensors(state=measured, weight=images)} if measured else {})

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Return the old model plus tau_eff times the mean normalised change.

        With the mean m of the models weighted by n_k / ||a_k||_1 this is x + f (m - x), where f is the mean
        of the norms times the mean of their inverses, both by images: f >= 1, and 1 where they are equal.
        """
        further = float(means[_STEPS][_NORM]) * float(means[_STEPS][_INVERSE]) - 1
        new = dict(means.get(_STATISTICS, {}))
        for name, mean in means[MODEL].items():
            wide = mean.to(accumulate_dtype(mean.dtype))
            # Not x + f (m - x): where f = 1, the result is the mean to the bit.
            new[name] = (wide + further * (wide - state[name].to(wide.dtype))).to(mean.dtype)
        return {name: new[name] for name in state}


def steps_norm(steps: int, *, momentum: float = 0.0, alpha: float = 0.0) -> float:
    """Return ||a||_1, the sum of the factors with which the gradients of local steps enter the change.

    Args:
        steps: Local steps s, each of the same learning rate.
        momentum: rho of SGD, 0 <= rho < 1, its direction 0 at first.
        alpha: Learning rate times mu of a proximal term, 0 <= alpha <= 1; one of the two is 0.
    """
    if momentum:
        norm = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    elif alpha:
        # Written as 1 - (1 - alpha)^s it would lose its digits where alpha is small.
        norm = -math.expm1(steps * math.log1p(-alpha)) / alpha if alpha < 1 else 1.0
    else:
        norm = float(steps)
    return max(norm, 1.0)  # that of one step, but for rounding


def _norm(update: ClientUpdate) -> float:
    """Return a client's ||a||_1 as it sent it."""
    sent = update.tensors.get(_STEPS, {}).get(_NORM)
    norm = float(sent) if sent is not None and sent.numel() == 1 else math.nan
    # The first step's gradient enters with a factor of 1.
    if not 1 <= norm <= _MOST:
        raise RunError(
            f"client {update.client} sent no number 'norm' >= 1 of its local steps; its training must use "
            "FedNova's client half"
        )
    return norm
