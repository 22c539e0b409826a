"""Robust aggregation: a few broken or hostile clients cannot move the model as far as they like.

``Median``       the median of each coordinate. Yin, Chen, Ramchandran, Bartlett 2018, arXiv 1803.01498.
``TrimmedMean``  the mean of each coordinate without its largest and smallest values. Same paper.
``Krum``         the model (or the mean of some) closest to its neighbours. Blanchard, El Mhamdi, Guerraoui,
                 Stainer 2017, "Machine Learning with Adversaries", arXiv 1703.02757.

All clients count alike: a hostile client would claim many examples. The papers aggregate gradients; here it
is models, which are the same shifted by the round's start. On very unlike data a client with rare classes
looks like an attacker: measure the rare classes before choosing one of these.

Every model of the cohort is in memory at once, then one tensor of all of them at a time in float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from fedvision.aggregation.summation import accumulate_dtype
from fedvision.algorithms.base import RoundStrategy, cohort_size
from fedvision.errors import TooFewUpdates
from fedvision.ranges import check_range
from fedvision.types import ClientUpdate, State


class Median(RoundStrategy):
    """The median of each coordinate; of an even number of values, the mean of the middle two."""

    def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
        """Return the coordinate-wise median of the models."""
        models = [update.state for update in updates]
        # All but the middle value, or the middle two, are trimmed away.
        return _trimmed_mean(models, trim=(len(models) - 1) // 2)


class TrimmedMean(RoundStrategy):
    """The mean of each coordinate without its extreme values.

    A cohort of fewer than 1 / share clients loses nobody: with the default of 0.2 it takes five to leave one
    out at each end, and of four this is the plain mean, which one hostile client moves at will; a notice
    at the start says so. A round counts the answers that it has, so lost ones can bring it below.

    Args:
        share: Share of the cohort to leave out at each end, rounded down to whole clients, 0 <= share < 0.5.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, *, share: float = 0.2, fraction: float = 1.0, min_clients: int = 1) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, below=0.5, share=share)
        self.share = share

    def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
        """Return the coordinate-wise trimmed mean of the models."""
        models = [update.state for update in updates]
        return _trimmed_mean(models, trim=self.trimmed(len(models)))

    def trimmed(self, cohort: int) -> int:
        """Return how many of so many clients are left out at each end."""
        # 0.29 * 100 is 28.999...: a share that means whole clients must not lose one to rounding.
        return min(int(self.share * cohort + 1e-9), (cohort - 1) // 2)


def trimming_notices(strategy: RoundStrategy, clients: int) -> list[str]:
    """Return a notice on a trimmed mean whose cohort is too small for its share; empty else.

    Args:
        strategy: Any.
        clients: Number of clients.
    """
    if not isinstance(strategy, TrimmedMean) or not strategy.share:
        return []
    cohort = cohort_size(clients, strategy.fraction, strategy.min_clients)
    if strategy.trimmed(cohort):
        return []
    enough = math.ceil(1 / strategy.share - 1e-9)
    return [
        f"trimmed-mean with strategy.share = {strategy.share:g} leaves nobody out of a round's {cohort} and "
        f"is the plain mean; it takes {enough} clients a round, or a larger share"
    ]


class Krum(RoundStrategy):
    """The models with the smallest sum of squared distances to their n - malicious - 2 nearest others.

    Args:
        malicious: Hostile clients to withstand in a round, f >= 0. At least 2f + 3 clients are selected.
        keep: Models to average, >= 1: 1 is Krum and returns one client's model, more is Multi-Krum.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, *, malicious: int = 0, keep: int = 1, fraction: float = 1.0, min_clients: int = 1
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, malicious=malicious)
        check_range(at_least=1, keep=keep)
        self.malicious = malicious
        self.keep = keep
        self.min_clients = max(min_clients, self._needed)

    @property
    def _needed(self) -> int:
        """Updates that the choice needs: n >= 2f + 3, and enough that all kept ones can be honest."""
        return max(2 * self.malicious + 3, self.malicious + self.keep)

    def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
        """Return the chosen model, or the mean of the chosen ones.

        Raises:
            TooFewUpdates: Fewer updates came than the arguments need.
        """
        models = [update.state for update in updates]
        if len(models) < self._needed:
            raise TooFewUpdates(
                f"krum with malicious = {self.malicious} and keep = {self.keep} needs {self._needed} updates "
                f"in a round, but {len(models)} came; have more clients, or lower strategy.malicious or "
                "strategy.keep"
            )
        scores = _krum_scores(models, neighbours=len(models) - self.malicious - 2)
        chosen = torch.argsort(scores, stable=True)[: self.keep].sort().values.tolist()
        return _trimmed_mean([models[place] for place in chosen], trim=0)


def _trimmed_mean(models: Sequence[State], trim: int) -> State:
    """Return each coordinate's mean over the models without its ``trim`` smallest and largest values."""
    new: State = {}
    for name, first in models[0].items():
        values = _stack(models, name)
        if trim:
            values = values.sort(dim=0).values[trim : len(models) - trim]
        new[name] = values.mean(dim=0).to(first.dtype)
    return new


def _krum_scores(models: Sequence[State], neighbours: int) -> torch.Tensor:
    """Return float64 [K]: each model's sum of squared distances to its nearest others."""
    count = len(models)
    squares = torch.zeros(count, count, dtype=torch.float64)
    for name in models[0]:
        values = _stack(models, name).unsqueeze(-1).flatten(start_dim=1)
        for place in range(count - 1):
            # Differences first: ||a||^2 + ||b||^2 - 2ab loses all digits for models that are almost equal.
            difference = values[place + 1 :] - values[place]
            squares[place, place + 1 :] += difference.square_().sum(dim=1, dtype=torch.float64)
    squares += squares.T.clone()
    squares.fill_diagonal_(torch.inf)
    return squares.sort(dim=1).values[:, :neighbours].sum(dim=1)


def _stack(models: Sequence[State], name: str) -> torch.Tensor:
    """Return one tensor of all models, [K, ...], in float32 or wider."""
    return torch.stack([model[name].to(accumulate_dtype(model[name].dtype)) for model in models])
