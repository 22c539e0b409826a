"""FedDyn: a regulariser that each client moves every round, so that local optima agree with the global one.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama 2021, "Federated Learning Based on Dynamic
Regularization", arXiv 2111.04263, Algorithm 1. Client k keeps g_k, an estimate of its own gradient at the end
of its training, and minimises ``loss - <g_k, w> + alpha/2 ||w - x||^2``, so that a local step follows::

    gradient - g_k + alpha (w - x)

After the round::

    g_k <- g_k - alpha (y_k - x)
    h   <- h - |S| / N * mean_k(y_k - x)          S the cohort, N all clients
    x   <- mean_k(y_k) - h

h here is the paper's h / alpha. Means are plain, as in the paper: a client with 10 images counts as much as
one with 1000. The authors' code can also scale alpha by a client's images; this one does not.

There is no alpha = 0: the server's step past the mean does not fade with alpha, so a small one is not FedAvg,
but FedAvg that overshoots. Weight decay is part of the local objective where the optimiser adds it to the
gradients, as ``sgd`` does: then g_k is the gradient of loss and decay together. (The authors' code passes
alpha to the optimiser as weight decay, about 0; here the pull is explicit.) Decay that an optimiser applies
beside the gradients, as AdamW does, is not in g_k and is refused.

Clients must keep g_k between rounds, so the method suits federations whose members come back. The round's
traffic is FedAvg's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision.aggregation.summation import accumulate_dtype
from fedvision.algorithms.fedavg import only_averaged
from fedvision.algorithms.mean import MODEL, MeanStrategy, WeightedTensors
from fedvision.errors import ConfigError
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import (
    ClientAlgorithm,
    Groups,
    Numbers,
    copy_like,
    gradient_columns,
    numbers_sent,
    pulls,
    shared_parameters,
    to_storage,
)
from fedvision.types import ClientConfig, ClientUpdate, State, TrainRequest

if TYPE_CHECKING:
    import numpy as np

    from fedvision.config import ExperimentConfig


class FedDynClient(ClientAlgorithm):
    """Each step follows gradient - g_k + alpha (w - x); the client keeps g_k, zero at first."""

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take alpha, the global model's values and g_k to the parameters' device.

        Raises:
            ClientError: The request has no number ``alpha``.
        """
        self.numbers = numbers_sent(request, "FedDyn", "alpha")
        self.parameters = shared_parameters(parameters, request)
        own = {
            name: copy_like(memory[name], p) if name in memory else torch.zeros_like(p, requires_grad=False)
            for name, p in self.parameters.items()
        }
        anchors = {name: copy_like(request.state[name], p) for name, p in self.parameters.items()}
        self.groups = {"anchor": anchors, "own": own}

    @staticmethod
    @torch.no_grad()
    def correct_gradients(parameters: Mapping[str, nn.Parameter], groups: Groups, numbers: Numbers) -> None:
        """Add alpha (w - x) - g_k to each gradient."""
        weights, gradients, anchors, own = gradient_columns(parameters, groups["anchor"], groups["own"])
        if not weights:
            return
        corrections = pulls(weights, anchors, numbers["alpha"])
        torch._foreach_sub_(corrections, own)
        torch._foreach_add_(gradients, corrections)

    @torch.no_grad()
    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the new g_k; with a lost model it stays."""
        # The server refuses a model that is not finite, so what belongs to it must not be kept.
        own, anchors = self.groups["own"], self.groups["anchor"]
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters.values()):
            return {}, to_storage(dict(own))
        alpha = self.numbers["alpha"]
        new = {name: own[name] - alpha * (p - anchors[name]) for name, p in self.parameters.items()}
        return {}, to_storage(new)


class FedDyn(MeanStrategy):
    """Plain means of models, moved on by what earlier rounds left over.

    Args:
        alpha: Strength of the regulariser on the clients, > 0; the paper's experiments have 0.001 to 0.1.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedDynClient

    def __init__(self, *, alpha: float = 0.01, fraction: float = 1.0, min_clients: int = 1) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(above=0, alpha=alpha)
        self.alpha = alpha
        self.behind: State = {}
        """The server's h over alpha: zeros, that is empty, until the first round has ended."""
        self.clients = 0
        """N, the most that a selection saw: who is busy or away now still has a g_k in h."""

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Look at the weight decay.

        Raises:
            ConfigError: The optimiser applies it beside the gradients.
        """
        training = config.training
        optimizer = training.optimizer
        beside = optimizer.use.rpartition(":")[2].lower() == "adamw"
        if training.weight_decay and (beside or optimizer.args.get("decoupled_weight_decay")):
            raise ConfigError(
                "[strategy] use = 'feddyn' keeps gradients, and the weight decay of training.optimizer = "
                f"{optimizer.use!r} is none here; set training.weight_decay = 0, or take 'sgd'"
            )

    def select(self, round: int, clients: Sequence[int], rng: np.random.Generator) -> list[int]:
        """Draw the cohort and remember how many clients there are."""
        self.clients = max(self.clients, len(clients))
        return super().select(round, clients, rng)

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send alpha."""
        return ClientConfig(numbers={"alpha": self.alpha})

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Add the model with weight 1."""
        return {MODEL: WeightedTensors(state=update.state, weight=1.0)}

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Move h by the share of clients whose updates were used, and the mean model by h."""
        share = num_updates / max(self.clients, num_updates)
        new = {}
        for name, mean in means[MODEL].items():
            if only_averaged(name):
                new[name] = mean
                continue
            wide = mean.to(accumulate_dtype(mean.dtype))
            moved = (wide - state[name].to(wide.dtype)).mul_(share)
            self.behind[name] = self.behind[name] - moved if name in self.behind else moved.neg_()
            new[name] = (wide - self.behind[name]).to(mean.dtype)
        return new
