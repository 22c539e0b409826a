"""FedAvg with a head of which each class's row is averaged over the clients that have images of the class.

With n_kc images of class c at client k, the tensors of a linear head are averaged row by row::

    w_c <- sum_k n_kc w_kc / sum_k n_kc        all other tensors as in FedAvg, by n_k

A client without images of a class still moves its row, always away from its features, and FedAvg averages
that in; where few clients have a class, its row is mostly such. A row of a class that no client of the round
has stays as it was. Where all clients have the same mixture of classes it is FedAvg.

The method is the package's own. Li and Zhan 2021, "FedRS: Federated Learning with Restricted Softmax for
Label Distribution Non-IID Data", KDD 2021, limit on the clients what this corrects at the server.

A client sends its class counts beside its model, so across machines its owner must share them as they are
(``share.counts = "plain"``). The head must be linear and shared.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.mean import MODEL, WeightedTensors
from fedvision.errors import ClientError, ConfigError, RunError
from fedvision.models.base import halves
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import ClientUpdate, State, TrainRequest

_NEEDED_BY = "[strategy] use = 'fedavg-support'"
_SUPPORT, _COUNTS, _ROWS = "support", "counts", "rows"
_HEAD = ("head.weight", "head.bias")


class SupportClient(ClientAlgorithm):
    """Sends the client's class counts: the group ``support`` has ``counts``, float64 [C]."""

    sends_counts = True
    rehearsed = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take note of the counts.

        Raises:
            ClientError: The request has none.
            ConfigError: The head is not linear with a row for each class, or stays on the clients.
        """
        if request.own_counts is None:
            raise ClientError(
                request.client, "training", "'fedavg-support' got no class counts of the client's images"
            )
        head = halves(model, _NEEDED_BY).head
        if not isinstance(head, nn.Linear) or head.out_features != len(request.own_counts):
            raise ConfigError(
                f"{_NEEDED_BY} averages the rows of a linear head with one for each class, and this "
                f"network's is a {type(head).__name__}; use 'fedavg'"
            )
        if missing := [
            f"head.{name}" for name, _ in head.named_parameters() if f"head.{name}" not in request.state
        ]:
            raise ConfigError(
                f"{_NEEDED_BY} averages the head, and {missing[0]!r} stays on the clients; use 'fedper'"
            )
        self._counts = torch.tensor(request.own_counts, dtype=torch.float64)

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the counts."""
        return {_SUPPORT: {_COUNTS: self._counts}}, {}


class FedAvgSupport(FedAvg):
    """FedAvg whose linear head is averaged row by row over the clients that have the class.

    Args:
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = SupportClient

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Add the model by images, and the head's rows times their classes' counts, in float64.

        Raises:
            RunError: The update has no class counts.
        """
        counts = _counts(state, update)
        found = {
            MODEL: WeightedTensors(
                state={name: t for name, t in update.state.items() if name not in _HEAD},
                weight=float(update.examples),
            ),
            _SUPPORT: WeightedTensors(state={_COUNTS: counts}, weight=1.0),
        }
        # A group has one weight, so rows come as products, which are exact: 24 bits times a count.
        rows = {
            name: t.double() * counts.to(t.device).view(-1, *[1] * (t.dim() - 1))
            for name, t in update.state.items()
            if name in _HEAD
        }
        return found | ({_ROWS: WeightedTensors(state=rows, weight=1.0)} if rows else {})

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Return the mean of the models; a row of a class that no client has is the old one."""
        counts, new = means[_SUPPORT][_COUNTS], dict(means[MODEL])
        for name, mean in means.get(_ROWS, {}).items():
            beside = counts.view(-1, *[1] * (mean.dim() - 1))
            old = state[name].double()
            new[name] = torch.where(beside > 0, mean / beside.clamp(min=1e-300), old).to(state[name].dtype)
        return {name: new[name] for name in state}


def _counts(state: State, update: ClientUpdate) -> torch.Tensor:
    """Return a client's class counts [C] as it sent them."""
    counts = update.tensors.get(_SUPPORT, {}).get(_COUNTS)
    rows = len(state[_HEAD[0]]) if _HEAD[0] in state else None
    if (
        counts is None
        or counts.dim() != 1
        or (rows is not None and len(counts) != rows)
        or not bool(((counts >= 0) & (counts <= update.examples)).all())
    ):
        raise RunError(
            f"client {update.client} sent no class counts that fit its {update.examples} images; its "
            "training must use the client half of 'fedavg-support'"
        )
    return counts.double()
