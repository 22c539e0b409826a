"""A strategy of one's own: a file beside the experiment, one method, nothing to register or install."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedvision.strategies.averaging import FedAvg
from fedvision.strategies.mean import MODEL, Summand
from fedvision.types import State, Update


class RootWeighted(FedAvg):
    """A mean in which a client with 100 times the images has 10 times the weight.

    It lies between FedAvg (100 times the weight) and a plain mean (the same weight): large clients still
    count for more, since their models are less noisy, but they do not drown classes that only small ones
    hold.
    """

    def contribute(self, state: State, update: Update) -> Mapping[str, Summand]:
        """Add the client's model, weighted by the square root of its number of examples."""
        return {MODEL: Summand(state=update.state, weight=math.sqrt(update.examples))}
