"""FedAvg: the mean of the clients' models, weighted by their numbers of examples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", arXiv 1602.05629. As in the paper, except that the weights are shares of the round's
cohort and not of the whole federation: with a fraction < 1 the mean is one of models, not of models and the
old one.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedvision.algorithms.mean import MODEL, MeanStrategy
from fedvision.types import State


class FedAvg(MeanStrategy):
    """``x <- sum_k n_k y_k / sum_k n_k`` over the cohort's models y_k with n_k examples each."""

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Return the mean of the models, weighted by examples."""
        return dict(means[MODEL])


def only_averaged(name: str) -> bool:
    """Return whether a tensor is a batch normalisation's running statistic, by its name in torch.

    Statistics are measured, not learned. A server optimiser's step past their mean means nothing and can turn
    a variance negative, so they are averaged whatever the method does with the parameters.
    """
    return name.rpartition(".")[2] in {"running_mean", "running_var"}
