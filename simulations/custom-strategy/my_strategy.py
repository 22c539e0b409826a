"""A strategy of one's own: a file beside the experiment, one method, nothing to register or install."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fedvision.strategies.base import RoundStrategy
from fedvision.strategies.summation import weighted_mean
from fedvision.types import State, Update


class RootWeighted(RoundStrategy):
    """A mean in which a client with 100 times the images has 10 times the weight.

    It lies between FedAvg (100 times the weight) and a plain mean (the same weight): large clients still
    count for more, since their models are less noisy, but they do not drown classes that only small ones
    hold.
    """

    def combine(self, state: State, updates: Iterator[Update]) -> State:
        """Return the mean of the models, weighted by the square roots of their numbers of examples."""
        return weighted_mean(updates, lambda update: math.sqrt(update.examples))
