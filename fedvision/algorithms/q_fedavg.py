"""q-FedAvg: clients with a higher loss count more, so that no client is left behind.

Li, Sanjabi, Beirami, Smith 2020, "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv
1905.10497, Algorithm 2. It minimises the mean of F_k^(q+1) / (q + 1), F_k the loss of client k. With F_k the
loss of the received model x over the client's training images and L = 1 / lr::

    D_k = F_k^q L (x - y_k)        h_k = q F_k^(q-1) ||L (x - y_k)||^2 + L F_k^q
    x <- x - sum_k D_k / sum_k h_k

Divided by L, and with the weighted mean m = sum_k F_k^q y_k / sum_k F_k^q, this is::

    x <- m + r (x - m)        r = P / (S + P),  S = sum_k F_k^q,  P = sum_k q F_k^(q-1) L ||x - y_k||^2

``q = 0`` is FedAvg with the plain mean over clients, as in the paper: a client with 10 images counts as one
with 1,000. A larger q evens the clients' losses out more and steps more carefully.

As in the authors' code 1e-10 is added to F_k, which is the experiment's own training loss, here in evaluation
mode and without augmentation. Clients are drawn evenly (the paper draws them by images), and the norm leaves
out batch norm's statistics, which are the weighted mean.

1 / lr is the paper's L. It bounds the gradients' change for one step of plain SGD; where a client takes many
steps a round, x - y_k is the sum of them, P outgrows S, and the model hardly moves. Then set ``lipschitz`` to
about 1 / (lr * steps), and likewise with momentum or another optimiser.

Nobody can check the losses that clients report: one that claims a large loss takes the model over. And a
server that made a model up could read class counts from the loss of it, so across machines only owners who
share theirs as they are (``share.counts = "plain"``) take part.

Costs: one further pass over the images without gradients a round, and two numbers beside the model. Updates
travel one by one: no worker sums them, as their weights have no scale known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fedvision.algorithms.base import RoundStrategy
from fedvision.algorithms.fedavg import only_averaged
from fedvision.errors import ClientError, RunError
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import ClientUpdate, State, TrainRequest

_GROUP, _LOSS, _RATE = "fairness", "loss", "rate"
_LEAST = 1e-10
"""Added to a loss: F^(q-1) of a loss of 0 has no value where q < 1."""


class QFedAvgClient(ClientAlgorithm):
    """Sends the received model's loss: the group ``fairness`` has ``loss`` and ``rate``, float64."""

    needs_loss = True
    sends_counts = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take note of the loss.

        Raises:
            ClientError: The request has none, or one that is negative.
        """
        if request.own_loss is None or request.own_loss < 0:
            found = "no loss" if request.own_loss is None else f"the loss {request.own_loss:g}"
            why = f"'q-fedavg' weighs by losses >= 0 of the received model, and got {found}"
            raise ClientError(request.client, "training", why)
        self._loss = request.own_loss

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the loss and the learning rate."""
        numbers = {_LOSS: self._loss, _RATE: lr}
        return {_GROUP: {name: torch.tensor(n, dtype=torch.float64) for name, n in numbers.items()}}, {}


class QFedAvg(RoundStrategy):
    """The mean of the models weighted by their clients' losses to the power of q, and a step towards it.

    Args:
        q: How much a client with a higher loss counts more, >= 0; 0 is the plain mean.
        lipschitz: L, >= 0: a bound on how fast gradients change; 0 takes 1 / learning rate, as the paper.
            Smaller ones make larger steps.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = QFedAvgClient

    def __init__(
        self, *, q: float = 0.1, lipschitz: float = 0.0, fraction: float = 1.0, min_clients: int = 1
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, q=q, lipschitz=lipschitz)
        self.q, self.lipschitz = q, lipschitz

    def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
        """Add up the models, one at a time, and step to their mean.

        Raises:
            RunError: An update has no loss and learning rate.
        """
        sums = _Sums(self.q)
        for update in updates:
            loss, rate = _numbers(update)
            sums.add(state, update, loss, self.lipschitz or 1 / rate)
            del update  # before the next one is made, or two models are in memory
        back = sums.penalty / (sums.weight + sums.penalty)
        new = {}
        for name, total in sums.totals.items():
            mean, old = total.div_(sums.weight), state[name]
            # Where q = 0 the result is the mean to the bit.
            moved = mean if only_averaged(name) else mean + back * (old.double() - mean)
            new[name] = moved.to(old.dtype)
        return {name: new[name] for name in state}


@dataclass
class _Sums:
    """The sums of a round divided by the largest F^q so far, so that none is too large or too small."""

    q: float
    top: float = 0.0
    weight: float = 0.0
    penalty: float = 0.0
    totals: State = field(default_factory=dict)

    def add(self, state: State, update: ClientUpdate, loss: float, lipschitz: float) -> None:
        """Add a model; it is read, not kept."""
        if loss > self.top:
            factor = (self.top / loss) ** self.q if self.top else 1.0
            self.weight, self.penalty, self.top = self.weight * factor, self.penalty * factor, loss
            for total in self.totals.values():
                total.mul_(factor)
        weight = (loss / self.top) ** self.q
        square = 0.0
        for name, tensor in update.state.items():
            wide = tensor.to("cpu", torch.float64)
            if not only_averaged(name) and self.q:
                square += float((wide - state[name].double()).square().sum())
            total = self.totals.setdefault(name, torch.zeros_like(wide))
            total.add_(wide, alpha=weight)
        self.weight += weight
        self.penalty += self.q * weight / loss * lipschitz * square


def _numbers(update: ClientUpdate) -> tuple[float, float]:
    """Return a client's loss, 1e-10 above what it sent, and its learning rate."""
    sent: Mapping[str, torch.Tensor] = update.tensors.get(_GROUP, {})
    known = [sent.get(name) for name in (_LOSS, _RATE)]
    loss, rate = (math.nan if one is None or one.numel() != 1 else float(one) for one in known)
    if not (0 <= loss < math.inf and 0 < rate < math.inf):
        raise RunError(
            f"client {update.client} sent no loss >= 0 and learning rate > 0; its training must use the "
            "client half of 'q-fedavg'"
        )
    return loss + _LEAST, rate
